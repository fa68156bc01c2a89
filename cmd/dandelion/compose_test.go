package main

import (
	"bytes"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"dandelion/box"
	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/state"
	"dandelion/pkg/testnginx"
	"dandelion/publisher"
)

// composition is docker-compose.yml, as far as it names what must exist.
type composition struct {
	Services map[string]*service `yaml:"services"`
	Networks map[string]any      `yaml:"networks"`
	Volumes  map[string]any      `yaml:"volumes"`
}

type service struct {
	Image string `yaml:"image"`
	Build struct {
		Context    string `yaml:"context"`
		Dockerfile string `yaml:"dockerfile"`
		Target     string `yaml:"target"`
	} `yaml:"build"`
	Command     words                                 `yaml:"command"`
	Environment map[string]string                     `yaml:"environment"`
	Volumes     []string                              `yaml:"volumes"`
	Ports       []string                              `yaml:"ports"`
	NetworkMode string                                `yaml:"network_mode"`
	Networks    yaml.Node                             `yaml:"networks"`
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`

	settings settings
}

// words is a list, or a text with blanks.
type words []string

func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*w = strings.Fields(n.Value)
		return nil
	}
	return n.Decode((*[]string)(w))
}

// settings are what a daemon makes of the configuration and the environment that a service has.
type settings struct {
	state     state.Config
	entrance  entrance.Config
	box       box.Config
	publisher publisher.Config
	listen    []string // ports
}

func readComposition(t *testing.T) *composition {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`\$\{[A-Z_]+:-([^}]*)\}`).ReplaceAll(text, []byte("$1"))
	c := &composition{}
	if err := yaml.Unmarshal(text, c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) < 8 {
		t.Fatalf("docker-compose.yml has the services %v", slices.Sorted(maps.Keys(c.Services)))
	}
	return c
}

// TestComposeConfig: what Debian's docker-compose makes of the file, with and without DANDELION_HOST.
func TestComposeConfig(t *testing.T) {
	t.Parallel()
	command := []string{"docker-compose"}
	if exec.Command("docker", "compose", "version").Run() == nil {
		command = []string{"docker", "compose"}
	} else if _, err := exec.LookPath("docker-compose"); err != nil {
		t.Fatal("docker-compose is not installed: apt-get install docker-compose")
	}
	for _, host := range []string{"", "192.168.1.20"} {
		cmd := exec.Command(command[0], append(command[1:], "-f", "docker-compose.yml", "config")...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "DANDELION_HOST="+host)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil || said.Len() > 0 {
			t.Fatalf("%s config: %v\n%s", strings.Join(command, " "), err, &said)
		}
		if want := "DANDELION_BOX_PUBLIC_ADDRESS: " + host; !strings.Contains(string(out), want) {
			t.Errorf("with DANDELION_HOST=%s there is no %s in\n%s", host, want, out)
		}
	}
}

// TestComposeNamesWhatExists holds docker-compose.yml, what it mounts and the programs together: every file, stage,
// volume, network, service, address, port and setting that one names is what the others have.
func TestComposeNamesWhatExists(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	stages := checkDockerfile(t)
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		s := c.Services[name]
		wrong := func(format string, args ...any) { t.Helper(); t.Errorf("service "+name+": "+format, args...) }
		if s.Image == "" {
			if s.Build.Context != "." || s.Build.Dockerfile != "deploy/docker/Dockerfile" || stages[s.Build.Target] == nil {
				wrong("there is no stage %q of %s in %s", s.Build.Target, s.Build.Dockerfile, s.Build.Context)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if file, ok := strings.CutPrefix(from, "./"); ok {
				if _, err := os.Stat(filepath.Join(root, file)); err != nil {
					wrong("%v", err)
				}
			} else if _, there := c.Volumes[from]; !there {
				wrong("the volume %s is not declared", from)
			}
		}
		for other, how := range s.DependsOn {
			if o := c.Services[other]; o == nil || how.Condition == "service_healthy" && len(o.Healthcheck.Test) == 0 {
				wrong("it waits for %s of %s", how.Condition, other)
			}
		}
		if len(s.Healthcheck.Test) == 0 {
			wrong("it has no health check")
		}
		s.settings = load(t, name, s)
	}
	for name, s := range c.Services {
		c.checkAddresses(t, name, s)
	}
}

// load reads what a service's program would read. The services that are not ours have no settings but ports.
func load(t *testing.T, name string, s *service) (set settings) {
	t.Helper()
	set = settings{state: state.Default(), entrance: entrance.DefaultConfig(), box: box.DefaultConfig(), publisher: publisher.DefaultConfig()}
	daemons := map[string]config.Section{
		"entrance":  {Name: "entrance", Value: &set.entrance},
		"box":       {Name: "box", Value: &set.box},
		"publisher": {Name: "publisher", Value: &set.publisher},
	}
	own, ours := daemons[s.Build.Target]
	if !ours {
		if i := slices.IndexFunc(s.Command, func(w string) bool { return strings.Contains(w, "plain.sh ") }); i >= 0 {
			set.listen = strings.Fields(s.Command[i])[2:3]
		} else if strings.HasPrefix(s.Image, "redis:") {
			set.listen = []string{"6379"}
		}
		return set
	}
	var environ []string
	for variable, value := range s.Environment {
		environ = append(environ, variable+"="+value)
	}
	file := s.mounted("/etc/dandelion/config.yaml")
	if err := config.Check(filepath.Join(root, file), sections()...); err != nil {
		t.Errorf("service %s: %v", name, err)
	}
	var out, said bytes.Buffer
	program := config.Program{Name: "run_" + own.Name, Sections: []config.Section{{Name: "redis", Value: &set.state, Shared: true}, own}}
	if done, _ := program.Parse(append([]string{"--config", filepath.Join(root, file)}, s.Command...), environ, &out, &said); done || said.Len() > 0 {
		t.Errorf("service %s does not start: %s", name, &said)
	}
	listen := map[string]string{"entrance": set.entrance.Listen, "box": set.box.Listen, "publisher": set.publisher.Listen}[own.Name]
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Errorf("service %s: %v", name, err)
	}
	set.listen = []string{port}
	return set
}

// mounted returns which file or volume is at a path of the service; "" for none. What is behind it goes with it.
func (s *service) mounted(at string) string {
	for _, v := range s.Volumes {
		if fields := strings.Split(v, ":"); fields[1] == at || strings.HasPrefix(at, fields[1]+"/") {
			return strings.TrimPrefix(fields[0], "./")
		}
	}
	return ""
}

// owner is the service whose network namespace a service uses.
func (c *composition) owner(name string) string {
	if other, ok := strings.CutPrefix(c.Services[name].NetworkMode, "service:"); ok {
		return other
	}
	return name
}

// listening are the ports at which something listens in a network namespace.
func (c *composition) listening(owner string) (ports []string) {
	for name, s := range c.Services {
		if c.owner(name) == owner {
			ports = append(ports, s.settings.listen...)
		}
	}
	return ports
}

func (c *composition) checkAddresses(t *testing.T, name string, s *service) {
	t.Helper()
	wrong := func(format string, args ...any) { t.Helper(); t.Errorf("service "+name+": "+format, args...) }
	owner := c.owner(name)
	if c.Services[owner] == nil {
		wrong("there is no service %s", owner)
		return
	}
	reaches := func(what, text string) { // from the service, as it says it
		u, err := url.Parse(text)
		if err != nil {
			wrong("%s: %v", what, err)
			return
		}
		at := u.Hostname()
		if at == "127.0.0.1" {
			at = owner
		}
		if c.Services[at] == nil || c.owner(at) != at || !slices.Contains(c.listening(at), u.Port()) {
			wrong("%s is %s, where nothing listens", what, text)
		}
	}
	for _, p := range s.Ports {
		fields := strings.Split(p, ":")
		if len(fields) != 2 || !slices.Contains(c.listening(name), fields[1]) {
			wrong("port %s: %s is listened on", p, c.listening(name))
		}
	}
	for _, word := range s.Healthcheck.Test {
		if strings.HasPrefix(word, "http://") {
			reaches("the health check", word)
			if slices.Contains(s.Healthcheck.Test, "ready") && !strings.HasSuffix(word, ":"+s.settings.listen[0]) {
				wrong("the health check asks %s, and not the service's own port %s", word, s.settings.listen)
			}
		}
	}
	set := s.settings
	if set.state.URL != "" {
		reaches("redis.url", set.state.URL)
	}
	for _, u := range slices.Concat(set.box.Entrances, set.publisher.Entrances) {
		reaches("entrances", u)
	}
	switch s.Build.Target {
	case "entrance":
		if len(set.entrance.TrustedProxies) == 0 || set.entrance.TrustedProxies[0].String() != "127.0.0.1/32" || set.entrance.DataDir != "/data" || s.mounted("/data") == "" {
			wrong("trusted_proxies %s, data_dir %s", set.entrance.TrustedProxies, set.entrance.DataDir)
		}
	case "publisher":
		if len(set.publisher.TrustedProxies) == 0 || set.publisher.TrustedProxies[0].String() != "127.0.0.1/32" || set.publisher.DataDir != "/data" || s.mounted("/data") == "" {
			wrong("trusted_proxies %s, data_dir %s", set.publisher.TrustedProxies, set.publisher.DataDir)
		}
		for _, stream := range set.publisher.Streams {
			dir := strings.TrimPrefix(string(stream.Source), "dir:")
			if volume, encoder := s.mounted(dir), c.Services["encoder"]; volume == "" || encoder.mounted(dir) != volume || !slices.Contains(encoder.Command, path.Join(dir, "index.m3u8")) {
				wrong("the encoder does not write into %s", dir)
			}
		}
	case "box":
		var at map[string]struct {
			Address string `yaml:"ipv4_address"`
		}
		if err := s.Networks.Decode(&at); err != nil {
			t.Fatal(err)
		}
		host, port, err := net.SplitHostPort(set.box.PublicAddress)
		if err != nil || at["dandelion"].Address != host || !slices.Contains(set.listen, port) || !slices.Contains(s.Ports, port+":"+port) || set.box.DataDir != "/data" || s.mounted("/data") == "" {
			wrong("public_address %s, address %s, listen %s, ports %s, data_dir %s", set.box.PublicAddress, at["dandelion"].Address, set.listen, s.Ports, set.box.DataDir)
		}
	}
	if file := s.mounted("/etc/dandelion/nginx.conf"); file != "" {
		c.checkNginx(t, owner, file, set.listen[0])
	}
}

// checkNginx has nginx read what it would read in the container, and compares the ports.
func (c *composition) checkNginx(t *testing.T, owner, file, port string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	plain := exec.Command("sh", filepath.Join(root, "deploy/docker/plain.sh"), port)
	plain.Stdin = bytes.NewReader(text)
	out, err := plain.Output()
	if err != nil || !strings.Contains(string(out), "listen "+port+";") || regexp.MustCompile(`(?m)^[^#]*ssl`).Match(out) {
		t.Errorf("plain.sh %s <%s: %v\n%s", port, file, err, out)
		return
	}
	upstreams := regexp.MustCompile(`(?m)^\s*server 127\.0\.0\.1:(\d+);`).FindAllStringSubmatch(string(out), -1)
	for _, u := range upstreams {
		if !slices.Contains(c.listening(owner), u[1]) {
			t.Errorf("%s passes on to port %s, where nothing listens in %s", file, u[1], owner)
		}
	}
	if len(upstreams) == 0 {
		t.Errorf("%s passes on to nobody", file)
	}
	testnginx.Check(t, strings.ReplaceAll(string(out), "/var/cache/", t.TempDir()+"/"))
}

// checkDockerfile returns the stages with what they copy, after a look at each instruction.
func checkDockerfile(t *testing.T) (stages map[string][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy/docker/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	stages = map[string][]string{}
	user, from, base := map[string]string{}, "", map[string]string{}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		switch fields[0] {
		case "FROM":
			from = fields[len(fields)-1]
			base[from], user[from] = fields[1], user[fields[1]]
			stages[from] = slices.Clone(append(stages[fields[1]], "FROM "+fields[1]))
		case "COPY":
			args, copied := fields[1:len(fields)-1], ""
			for strings.HasPrefix(args[0], "--") {
				if stage, ok := strings.CutPrefix(args[0], "--from="); ok {
					if copied = stage; stages[stage] == nil {
						t.Errorf("Dockerfile: no stage %s: %s", stage, line)
					}
				}
				args = args[1:]
			}
			for _, arg := range args {
				if _, err := os.Stat(filepath.Join(root, arg)); copied == "" && err != nil {
					t.Errorf("Dockerfile: %v", err)
				}
				stages[from] = append(stages[from], arg)
			}
		case "RUN":
			for _, word := range fields {
				if strings.HasPrefix(word, "./") {
					if _, err := os.Stat(filepath.Join(root, word, "main.go")); err != nil {
						t.Errorf("Dockerfile builds what is not there: %v", err)
					}
					stages[from] = append(stages[from], word)
				}
			}
		case "USER":
			user[from] = fields[1]
		case "ENTRYPOINT":
			program := strings.Trim(fields[1], `[]"`)
			if from == "encoder" {
				break
			}
			built := "/out/" + path.Base(program)
			if path.Base(program) != "run_"+from || !slices.Contains(stages[from], built) || !slices.Contains(stages[from], "/out/dandelion") ||
				!slices.ContainsFunc(stages["build"], func(dir string) bool { return strings.HasSuffix(dir, "/cmd/"+path.Base(program)) }) {
				t.Errorf("Dockerfile: the image %s starts %s and has %s", from, program, stages[from])
			}
			if !slices.Contains(stages[from], "FROM scratch") || user[from] != "65532:65532" {
				t.Errorf("Dockerfile: the image %s is not static (%s), or its user is %q", from, stages[from], user[from])
			}
		}
	}
	for _, image := range []string{"entrance", "box", "publisher", "encoder"} {
		if user[image] != "65532:65532" {
			t.Errorf("Dockerfile: the user of the image %s is %q", image, user[image])
		}
	}
	return stages
}
