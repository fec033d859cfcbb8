package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns/options"
)

func TestDNSImport(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../dns/corefile/testdata/rich.corefile")
	if err != nil {
		t.Fatal(err)
	}
	code, out, talk := netctl(t, string(text), "dns", "import-corefile")
	if code != exitFailed || !strings.Contains(talk, "line 38: refused: dnssec") {
		t.Errorf("exit code %d, said:\n%s", code, talk)
	}
	if _, err := options.Decode([]byte(out)); err != nil {
		t.Errorf("the options cannot be read: %v", err)
	}
	code, _, talk = netctl(t, string(text), "dns", "import-corefile", "--ignore",
		"dnssec,template,kubernetes,hosts,rewrite,forward,import,server,whoami")
	if code != 0 {
		t.Errorf("exit code %d although all that is refused is ignored:\n%s", code, talk)
	}
	if code, _, talk = netctl(t, ". {", "dns", "import-corefile"); code != exitFailed || !strings.Contains(talk, "}") {
		t.Errorf("exit code %d, said %q", code, talk)
	}
}

const queried = `
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: ClusterIP, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{name: http, port: 80, protocol: TCP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.0.5, podIPs: [{ip: 10.244.0.5}]}
`

func TestDNSQuery(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	nobody := filepath.Join(t.TempDir(), "resolv.conf")
	for path, text := range map[string]string{filepath.Join(dir, "a.yaml"): queried, nobody: ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "dns.yaml")
	if err := os.WriteFile(file, []byte("hosts: [{address: 192.0.2.1, names: [h.example]}]\nautopath: ['*']\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"web", "--as", "p"}, []string{"pod default/p", "web.default.svc.cluster.local. A: NOERROR", "service default/web", "IN A 10.96.0.5"}},
		{[]string{"web.default.svc.cluster.local", "srv"}, []string{"SRV: NOERROR", "IN SRV 0 100 80"}},
		{[]string{"none", "--as", "default/p"}, []string{
			"none.default.svc.cluster.local. A: NXDOMAIN", "there is no service none in namespace default", "none.svc.cluster.local. A: NXDOMAIN", "none. A: SERVFAIL", "is asked outside",
		}},
		{[]string{"web.default", "--as", "p", "--options", file}, []string{"(autopath), to web.default.svc.cluster.local.", "IN CNAME web.default.svc.cluster.local."}},
		{[]string{"h.example", "--options", file}, []string{"a host of the options", "IN A 192.0.2.1"}},
		{[]string{"5.0.96.10.in-addr.arpa", "PTR"}, []string{"10.96.0.5 is a virtual address of service default/web", "PTR web.default.svc.cluster.local."}},
	} {
		code, out, talk := netctl(t, "", append([]string{"dns", "query", "--cluster-dir", dir, "--resolv-conf", nobody}, c.args...)...)
		if code != 0 {
			t.Errorf("%v: exit code %d: %s", c.args, code, talk)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("%v: %q is missing in\n%s", c.args, w, out)
			}
		}
	}
	for _, args := range [][]string{{"web", "NOTYPE"}, {"a b"}, {}} {
		if code, _, _ := netctl(t, "", append([]string{"dns", "query", "--cluster-dir", dir}, args...)...); code != exitUsage {
			t.Errorf("%v: exit code %d, want %d", args, code, exitUsage)
		}
	}
	if code, _, talk := netctl(t, "", "dns", "query", "web", "--as", "nobody", "--cluster-dir", dir); code != exitFailed || !strings.Contains(talk, "default/nobody") {
		t.Errorf("exit code %d, said %q", code, talk)
	}
}

// TestDNSOptionsChange: 'netctl dns' works by its options as they are, while they
// change, and serves its metrics.
func TestDNSOptionsChange(t *testing.T) {
	t.Parallel()
	dir, addr, at := manifestDir(t), freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "dns.yaml")
	write := func(text string) {
		t.Helper()
		next := file + ".new"
		if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
	}
	write("hosts: [{address: 192.0.2.1, names: [h.example]}]\n")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"dns", "--cluster-dir", dir, "--listen", addr.String(), "--options", file, "--metrics", at.String()},
			streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard})
	}()
	wants := func(name, want string) {
		t.Helper()
		q := new(mdns.Msg)
		q.SetQuestion(name, mdns.TypeA)
		c := mdns.Client{Timeout: 2 * time.Second}
		got := "nothing"
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if m, _, err := c.Exchange(q, addr.String()); err == nil && len(m.Answer) > 0 {
				if got = strings.Join(strings.Fields(m.Answer[0].String()), " "); got == want {
					return
				}
			}
		}
		t.Errorf("%s: got %s, want %s", name, got, want)
	}
	wants("h.example.", "h.example. 30 IN A 192.0.2.1")
	wants("web.default.svc.cluster.local.", "web.default.svc.cluster.local. 30 IN A 10.0.0.20")
	write("ttl: 7\nhosts: [{address: 192.0.2.222, names: [h.example]}]\n")
	wants("h.example.", "h.example. 7 IN A 192.0.2.222")
	wants("web.default.svc.cluster.local.", "web.default.svc.cluster.local. 7 IN A 10.0.0.20")
	r, err := http.Get("http://" + at.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || !strings.Contains(string(text), `coredns_dns_responses_total{server="dns://:53",zone=".",view="",rcode="NOERROR",plugin="hosts"}`) {
		t.Errorf("metrics: %v\n%s", err, text)
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}
