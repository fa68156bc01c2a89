package state

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	dialTimeout   = 5 * time.Second
	ioTimeout     = 3 * time.Second
	openPatience  = 30 * time.Second // how long Open waits for a Redis that is not there
	firstRetry    = 100 * time.Millisecond
	slowestRetry  = 2 * time.Second
	poolSize      = 64
	idleConns     = 8
	connBuffer    = 4 << 10  // bytes for reading and for writing, of each connection
	pipelineConns = 8        // extra connections for pipelines, made when needed
	pipelineBytes = 16 << 10 // their buffers
)

// quiet stops go-redis from printing to stderr in its own format: every failure that it would
// print there also reaches a caller as an error.
var quiet = sync.OnceFunc(logging.Disable)

// dial returns a client of the real Redis that cfg names, after it has answered.
func dial(ctx context.Context, cfg Config, log *slog.Logger) (redis.UniversalClient, error) {
	client, where, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	ping := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return client.Ping(ctx).Err()
	}
	if err := awaitReachable(ctx, where, openPatience, ping, log); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	version, err := checkVersion(ctx, client, where, log)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	log.Info("Redis is reachable", "redis", where, "version", version)
	return client, nil
}

// newClient returns a client that has not connected yet, and how to call its Redis in messages:
// the addresses without the password.
func newClient(cfg Config) (redis.UniversalClient, string, error) {
	base := &redis.Options{}
	addrs := cfg.Addrs
	if cfg.URL != "" {
		var err error
		if base, err = parseURL(cfg.URL); err != nil {
			return nil, "", fmt.Errorf("redis.url: %w", err)
		}
		addrs = append([]string{base.Addr}, addrs...)
	} else {
		base.Addr = addrs[0]
	}
	where := strings.Join(addrs, ", ")
	switch {
	case cfg.Sentinel != "":
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: cfg.Sentinel, SentinelAddrs: addrs,
			Username: base.Username, Password: base.Password, DB: base.DB, TLSConfig: base.TLSConfig,
			Protocol: 2, MaxRetries: -1, DialTimeout: dialTimeout, DialerRetries: 1,
			ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, ContextTimeoutEnabled: true,
			PoolSize: poolSize, MaxIdleConns: idleConns, ReadBufferSize: connBuffer, WriteBufferSize: connBuffer,
			PipelinePoolSize: pipelineConns, PipelineReadBufferSize: pipelineBytes, PipelineWriteBufferSize: pipelineBytes,
			DisableIdentity: true,
		}), where, nil
	case cfg.Cluster:
		client := redis.NewClusterClient(&redis.ClusterOptions{
			Addrs:    addrs,
			Username: base.Username, Password: base.Password, TLSConfig: base.TLSConfig,
			Protocol: 2, MaxRetries: -1, DialTimeout: dialTimeout, DialerRetries: 1,
			ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, ContextTimeoutEnabled: true,
			PoolSize: poolSize, MaxIdleConns: idleConns, ReadBufferSize: connBuffer, WriteBufferSize: connBuffer,
			PipelinePoolSize: pipelineConns, PipelineReadBufferSize: pipelineBytes, PipelineWriteBufferSize: pipelineBytes,
			DisableIdentity: true, MaintNotificationsConfig: noNotifications(),
			DisableRoutingPolicies: true, // a command without a key, such as PING, goes to one node and not to all
		})
		client.AddHook(sendOnce{client})
		return client, where, nil
	}
	base.DialTimeout, base.ReadTimeout, base.WriteTimeout = dialTimeout, ioTimeout, ioTimeout
	base.PipelinePoolSize = pipelineConns
	base.PipelineReadBufferSize, base.PipelineWriteBufferSize = pipelineBytes, pipelineBytes
	return redis.NewClient(common(base)), where, nil
}

// common fills in what the embedded and the single Redis have alike.
func common(o *redis.Options) *redis.Options {
	o.Protocol = 2             // RESP3 brings pushes that nothing here wants
	o.MaxRetries = -1          // see State: nothing is sent twice
	o.DialerRetries = 1        // five times the dial timeout is no deadline
	o.DisableIdentity = true   // CLIENT SETINFO came with Redis 7.2
	o.PoolSize = poolSize      //
	o.MaxIdleConns = idleConns // after a burst
	o.ContextTimeoutEnabled = true
	o.ReadBufferSize, o.WriteBufferSize = connBuffer, connBuffer
	o.MaintNotificationsConfig = noNotifications()
	return o
}

func noNotifications() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// awaitReachable calls ping until it succeeds, ctx ends, the answer says that waiting is of no
// use, or patience is over. where is what messages call the Redis.
func awaitReachable(ctx context.Context, where string, patience time.Duration, ping func(context.Context) error, log *slog.Logger) error {
	deadline := time.Now().Add(patience)
	pause := firstRetry
	var before error // of the attempt before
	for {
		err := ping(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			if before == nil {
				before = err
			}
			return fmt.Errorf("gave up waiting for Redis at %s (%s): %w", where, cause(before), ctx.Err())
		case refused(err):
			return fmt.Errorf("%s refuses this client (%s): correct the user, password or database in redis.url", "Redis at "+where, cause(err))
		case !time.Now().Add(pause).Before(deadline):
			return fmt.Errorf("%s is not reachable for %.0f s (%s): start it, or correct redis.url, or leave redis.url empty to use the embedded state",
				"Redis at "+where, patience.Seconds(), cause(err))
		}
		if before == nil {
			log.Warn("Redis is not reachable, retrying", "redis", where, "cause", cause(err), "for", patience)
		}
		before = err
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, slowestRetry)
	}
}

// refused reports whether err is an answer that will be the same next time.
func refused(err error) bool {
	var answer redis.Error
	if !errors.As(err, &answer) {
		var certificate *tls.CertificateVerificationError
		return errors.As(err, &certificate)
	}
	for _, passing := range []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "BUSY", "TRYAGAIN", "ERR max number of clients"} {
		if strings.HasPrefix(answer.Error(), passing) {
			return false
		}
	}
	return true
}

// cause returns the part of err that a person can act on.
func cause(err error) string {
	var errno syscall.Errno
	var dns *net.DNSError
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &dns):
		return "no address found for " + dns.Name
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer"
	}
	return err.Error()
}

// checkVersion returns the version of the server, or an error if it is older than Redis 6.2.
func checkVersion(ctx context.Context, client redis.UniversalClient, where string, log *slog.Logger) (string, error) {
	info, err := client.Info(ctx, "server").Result()
	if err != nil {
		// Some hosted servers forbid INFO.
		log.Warn("The version of Redis cannot be read; at least 6.2 is needed", "redis", where, "cause", cause(err))
		return "unknown", nil
	}
	version, ok := parseVersion(info)
	if !ok {
		return version, fmt.Errorf("%s has version %s: at least 6.2, or Valkey, is needed", "Redis at "+where, version)
	}
	return version, nil
}

// parseVersion reads the answer to INFO server, and reports whether it is Redis 6.2 or newer, or
// Valkey. An answer without a version passes: a compatible server need not have one.
func parseVersion(info string) (version string, ok bool) {
	fields := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			fields[name] = value
		}
	}
	if v := fields["valkey_version"]; v != "" {
		return "valkey " + v, true
	}
	version = fields["redis_version"]
	if version == "" {
		return "unknown", true
	}
	majorText, rest, _ := strings.Cut(version, ".")
	minorText, _, _ := strings.Cut(rest, ".")
	major, err := strconv.Atoi(majorText)
	if err != nil {
		return version, true
	}
	minor, _ := strconv.Atoi(minorText)
	return version, major > 6 || major == 6 && minor >= 2
}
