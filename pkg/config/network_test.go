package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestNetwork(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"192.0.2.1":           "192.0.2.1/32",
		"10.1.2.3/8":          "10.0.0.0/8",
		"::1":                 "::1/128",
		"::ffff:192.0.2.1":    "192.0.2.1/32",
		"proxy.example":       "",
		"10.0.0.0/33":         "",
		"fe80::1%eth0":        "",
		"192.0.2.1,192.0.2.2": "",
	} {
		var n Network
		err := n.UnmarshalText([]byte(text))
		if want == "" && (err == nil || !strings.Contains(err.Error(), wantNetwork)) || want != "" && (err != nil || n.String() != want) {
			t.Errorf("%s: %v, %v; want %q", text, n, err, want)
		}
	}
	s := struct {
		Proxies Networks `yaml:"proxies" doc:"Networks of proxies."`
	}{}
	f := fieldsOf("box", reflect.ValueOf(&s))[0]
	if err := f.set("127.0.0.1, 10.0.0.0/8"); err != nil || fmt.Sprint(s.Proxies.Prefixes()) != "[127.0.0.1/32 10.0.0.0/8]" {
		t.Errorf("%v, %v", s.Proxies, err)
	}
	if err := f.set("127.0.0.1, proxy"); err == nil || !strings.Contains(err.Error(), "box.proxies[1]") {
		t.Error(err)
	}
}
