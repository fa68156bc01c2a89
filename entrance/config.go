package entrance

import (
	"fmt"

	"dandelion/pkg/config"
	"dandelion/pkg/wire"
)

// Config is the section `entrance` of config.yaml.
type Config struct {
	Listen           string          `yaml:"listen" doc:"address for boxes, publishers and the API"`
	DataDir          string          `yaml:"data_dir" doc:"directory for the key and the embedded state; made if missing, one process at a time"`
	PublicURL        string          `yaml:"public_url" doc:"URL at which boxes and publishers reach listen, such as http://192.0.2.1:7070; empty: the one that each of them dialled. Old peers need an IPv4 address in it"`
	OtherURLs        []string        `yaml:"other_urls" doc:"URLs of other entrances that boxes and publishers are told of; added to those in Redis at the start, where they can be removed"`
	LeaseTTL         config.Duration `yaml:"lease_ttl" doc:"how long a box's report is good for; boxes report every 5s"`
	MaxSearchResults int             `yaml:"max_search_results" doc:"how many boxes a publisher is told of at most; one that does not say how many it wants is told of 20"`
	AccountsKeep     config.Duration `yaml:"accounts_keep" doc:"how long accounts of traffic are kept, by hour"`
	GeoIPDB          config.Paths    `yaml:"geoip_db" doc:"GeoIP databases (.mmdb) for boxes and publishers that do not say where they are, such as one of cities and one of ASNs: their answers are joined, and they are read again when they change; empty: none"`
	TrustedProxies   config.Networks `yaml:"trusted_proxies" doc:"addresses or networks of web servers in front of this one, whose X-Forwarded-For names the peer"`
}

// DefaultConfig returns the settings of an entrance that nobody configured.
func DefaultConfig() Config {
	return Config{
		Listen:           ":7070",
		DataDir:          "data/entrance",
		LeaseTTL:         20 * config.Second,
		MaxSearchResults: 200,
		AccountsKeep:     90 * 24 * config.Hour,
	}
}

// Validate checks the settings; see config.Problems.
func (c *Config) Validate() error {
	var p config.Problems
	p.Listen("listen", c.Listen)
	p.NotEmpty("data_dir", c.DataDir, "a directory, such as /var/lib/dandelion/entrance")
	if c.PublicURL != "" {
		p.HTTPURL("public_url", c.PublicURL)
	}
	for i, u := range c.OtherURLs {
		p.HTTPURL(fmt.Sprintf("other_urls[%d]", i), u)
	}
	config.Between(&p, "lease_ttl", c.LeaseTTL, config.Second, 10*config.Minute)
	config.Between(&p, "max_search_results", c.MaxSearchResults, 1, wire.MaxBoxSet)
	config.Between(&p, "accounts_keep", c.AccountsKeep, 24*config.Hour, 10*365*24*config.Hour)
	return p.Err()
}
