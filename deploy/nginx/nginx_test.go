package nginx

import (
	"os"
	"testing"

	"dandelion/pkg/testnginx"
)

// TestConfigurations: nginx takes each of them alone, and all of them on one machine.
func TestConfigurations(t *testing.T) {
	t.Parallel()
	cert, key := testnginx.Certificate(t)
	var all []string
	for name, edits := range map[string]map[string]string{
		"box.conf":      {"listen": "listen " + testnginx.FreeAddr(t) + " ssl;", "access_log /var/log/nginx/dandelion.log": "access_log " + t.TempDir() + "/access.log dandelion;"},
		"entrance.conf": {"listen": "listen " + testnginx.FreeAddr(t) + " ssl;"},
		"web.conf":      {"listen": "listen " + testnginx.FreeAddr(t) + " ssl;", "proxy_cache_path": "proxy_cache_path " + t.TempDir() + "/cache keys_zone=dandelion_web:1m;"},
	} {
		conf, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		edits["ssl_certificate"], edits["ssl_certificate_key"] = "ssl_certificate "+cert+";", "ssl_certificate_key "+key+";"
		text := testnginx.Edit(t, string(conf), edits)
		testnginx.Check(t, text)
		all = append(all, text)
	}
	testnginx.Check(t, all...)
}
