package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netctl/netctl/internal/cluster"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// call runs netctl in this process.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, streams{in: strings.NewReader(""), out: &out, err: &errs})
	return code, out.String(), errs.String()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		code int
		says []string // on standard error
	}{
		{"--help", 0, nil},
		{"--version", 0, nil},
		{"ipam", 0, nil},
		{"lab --help", 0, nil},
		{"nonsense", 2, []string{`unknown command "nonsense"`, "netctl --help"}},
		{"ipam nonsense", 2, []string{`"nonsense"`, "netctl ipam --help"}},
		{"--nonsense", 2, []string{"--nonsense"}},
		{"ipam plan", 2, []string{`"cluster-cidr" not set`, "netctl ipam plan --help"}},
		{"ipam plan --cluster-cidr 10.0.0.0", 2, []string{`--cluster-cidr "10.0.0.0"`, "10.128.0.0/16"}},
		{"ipam plan --cluster-cidr 10.1.2.3/8", 2, []string{"--cluster-cidr 10.1.2.3/8", "did you mean 10.0.0.0/8?"}},
		{"ipam plan --cluster-cidr 10.0.0.0/8 --avoid x", 2, []string{`--avoid "x"`}},
		{"ipam plan --cluster-cidr 10.0.0.0/8 -o yaml", 2, []string{`-o "yaml": use table, json or kubeadm`}},
		{"ipam plan --cluster-cidr 10.0.0.0/8 --nodes many", 2, []string{`"many"`, "--nodes"}},
		{"ipam plan --cluster-cidr 10.0.0.0/24 --nodes 500", 1, []string{"500 nodes", "10.0.0.128/25 (128)"}},
		{"ipam plan --cluster-cidr 10.128.0.0/9 --pod-cidr 10.200.0.0/13 --avoid 10.203.0.0/16", 1, []string{"10.128.0.0/9", "10.203.0.0/16"}},
		{"ipam apply --cluster-cidr 10.128.0.0/9 --cluster-dir /no/such/directory", 1, []string{"/no/such/directory"}},
		{"ipam apply --cluster-cidr 10.128.0.0/9 --kubeconfig /no/such/file", 1, []string{"/no/such/file"}},
		{"agent --cluster-cidrs 10.0.0.7/8", 2, []string{"did you mean"}},
		{"agent --log-level loud", 2, []string{`logLevel "loud"`, "debug, info, warn or error"}},
		{"dns --listen nowhere", 2, []string{`--listen "nowhere"`, "127.0.0.1:5353"}},
		{"dns extra", 2, []string{`"extra"`}},
		{"proxy table --cluster-dir /no/such/directory", 1, []string{"/no/such/directory"}},
		{"lab up --name Not_A_Name", 2, []string{`"Not_A_Name"`, "lower-case"}},
		{"proxy --cluster-dir /tmp", 2, []string{"--node"}},
		{"proxy --node n --cluster-dir /tmp --pod-cidrs 10.0.0.7/8", 2, []string{"--pod-cidrs 10.0.0.7/8", "10.0.0.0/8"}},
		{"proxy --node n --cluster-dir /tmp --service-cidrs ten", 2, []string{`--service-cidrs "ten"`}},
		{"proxy --node n --cluster-dir /tmp --kubeconfig /x", 2, []string{"give one"}},
		{"dns --listen 53", 2, []string{`--listen "53"`}},
		{"dns --drain -1s", 2, []string{"--drain"}},
		{"dns --source etcd", 2, []string{`--source "etcd"`}},
		{"lab up --nodes 0", 2, []string{"--nodes 0", "1 to 64"}},
		{"lab up --ipv6 --dual-stack", 2, []string{"ipv6", "dual-stack"}},
		{"lab up -f /no/such/file.yaml", 1, []string{"/no/such/file.yaml"}},
		{"lab exec", 2, []string{"netctl lab exec --help"}},
		{"lab apply", 2, []string{`"filename" not set`}},
		{"lab delete", 2, []string{"-f FILE or KIND NAME"}},
		{"lab delete pod", 2, []string{"-f FILE or KIND NAME"}},
		{"lab nonsense", 2, []string{`"nonsense"`}},
		{"lab serve --dns-answer x", 2, []string{`--dns-answer "x"`, "NAME=ADDRESS"}},
		{"debug pprof", 2, []string{"netctl debug pprof --help"}},
		{"debug pprof heap --seconds -1s", 2, []string{"--seconds -1s"}},
		{"debug pprof heap --state-dir /no/such/directory", 1, []string{"/no/such/directory/status.sock", "is it running"}},
		{"lab status --name not-up-at-all", 1, []string{"netctl lab up --name not-up-at-all"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			code, out, errs := call(t.Context(), strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s%s", code, c.code, out, errs)
			}
			if c.code != 0 && out != "" {
				t.Errorf("talk on standard output: %s", out)
			}
			if strings.Count(errs, "\n") > 2 {
				t.Errorf("more than a line or two to read: %s", errs)
			}
			for _, want := range c.says {
				if !strings.Contains(errs, want) {
					t.Errorf("%q is not in %s", want, errs)
				}
			}
		})
	}
}

// Every command says what it does in one screen.
func TestHelpFitsAScreen(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"", "agent", "cni", "cni install", "cni uninstall", "proxy", "proxy table", "dns", "dns import-corefile", "dns query", "ipam", "ipam plan", "ipam apply",
		"lab", "lab up", "lab down", "lab status", "lab exec", "lab apply", "lab delete", "lab logs", "lab demo", "lab serve", "debug", "debug pprof",
	} {
		code, out, errs := call(t.Context(), append(strings.Fields(args), "--help")...)
		if lines := strings.Count(out, "\n"); code != 0 || errs != "" || lines > 50 || lines < 4 {
			t.Errorf("%q --help: exit code %d, %d lines\n%s%s", args, code, lines, out, errs)
		}
	}
}

func TestIPAMPlan(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ golden, args string }{
		{"plan.txt", "--cluster-cidr 10.128.0.0/9 --nodes 500 --pods-per-node 110 --services 20000"},
		{"plan.kubeadm.yaml", "--cluster-cidr 10.128.0.0/9 --nodes 500 --pods-per-node 110 --services 20000 -o kubeadm"},
		{"plan.json", "--cluster-cidr 10.128.0.0/9 --nodes 500 --pods-per-node 110 --services 20000 -o json"},
		{"plan-dual.txt", "--cluster-cidr 10.128.0.0/9,fd00:10::/48 --nodes 50"},
		{"plan-dual.kubeadm.yaml", "--cluster-cidr 10.128.0.0/9,fd00:10::/48 --nodes 50 -o kubeadm"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			t.Parallel()
			code, out, errs := call(t.Context(), append([]string{"ipam", "plan"}, strings.Fields(c.args)...)...)
			if code != 0 || errs != "" {
				t.Fatalf("exit code %d: %s", code, errs)
			}
			if strings.HasSuffix(c.golden, ".json") && !json.Valid([]byte(out)) {
				t.Errorf("not JSON: %s", out)
			}
			path := filepath.Join("testdata", c.golden)
			if *update {
				if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if out != string(want) {
				t.Errorf("differs from %s (-update rewrites it):\n%s", path, out)
			}
		})
	}
}

// What apply writes is what a source of cluster state reads.
func TestIPAMApplyIsRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	args := []string{"ipam", "apply", "--cluster-cidr", "10.128.0.0/9,fd00:10::/48", "--nodes", "50", "--cluster-dir", dir}
	code, out, errs := call(t.Context(), args...)
	if code != 0 || !strings.Contains(out, filepath.Join(dir, "ipam.yaml")) {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	state, problems, err := cluster.Read(dir)
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	if len(state.ServiceCIDRs) != 2 || len(state.BlockPools) != 2 {
		t.Errorf("service ranges %v, pools %v, want two of each", state.ServiceCIDRs, state.BlockPools)
	}
	for _, pool := range state.BlockPools {
		if slices.ContainsFunc(state.ServiceCIDRs, pool.CIDR.Overlaps) {
			t.Errorf("pool %s overlaps the service ranges %v", pool.CIDR, state.ServiceCIDRs)
		}
	}
	_, dry, _ := call(t.Context(), append(args, "--dry-run")...)
	written, err := os.ReadFile(filepath.Join(dir, "ipam.yaml"))
	if err != nil || dry != string(written) {
		t.Errorf("--dry-run prints something else (%v):\n%s", err, dry)
	}
}

const manifests = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.0.0.20, clusterIPs: [10.0.0.20], ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.0.5], conditions: {ready: true}}, {addresses: [10.1.0.6], conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec: {clusterIP: 10.0.0.21, clusterIPs: [10.0.0.21], ports: [{port: 80}]}
`

func manifestDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "m.yaml"), []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestProxyTable(t *testing.T) {
	t.Parallel()
	dir := manifestDir(t)
	code, out, errs := call(t.Context(), "proxy", "table", "--cluster-dir", dir, "--node", "n")
	for _, want := range []string{"default/web", "http", "10.0.0.20:80/TCP", "10.1.0.5:8080,10.1.0.6:8080", "default/empty"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit code %d, %q is not in %s%s", code, want, out, errs)
		}
	}
	code, out, _ = call(t.Context(), "proxy", "table", "--cluster-dir", dir, "-o", "json")
	var rows []serviceRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil || code != 0 || len(rows) != 2 {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
	if code, _, errs := call(t.Context(), "proxy", "table", "--cluster-dir", dir, "-o", "xml"); code != 2 || !strings.Contains(errs, `-o "xml"`) {
		t.Errorf("-o xml: exit code %d: %s", code, errs)
	}
}

// netctl dns alone answers over UDP and TCP, and ends when it is told to.
func TestDNSAlone(t *testing.T) {
	t.Parallel()
	dir := manifestDir(t)
	addr := freeAddr(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	var errs bytes.Buffer
	go func() {
		ended <- run(ctx, []string{"dns", "--cluster-dir", dir, "--listen", addr.String()}, streams{in: strings.NewReader(""), out: &errs, err: &errs})
	}()
	for _, network := range []string{"udp", "tcp"} {
		q := new(dns.Msg)
		q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		c := &dns.Client{Net: network, Timeout: time.Second}
		var reply *dns.Msg
		var err error
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if reply, _, err = c.Exchange(q, addr.String()); err == nil && len(reply.Answer) > 0 {
				break
			}
		}
		if err != nil || len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "10.0.0.20") {
			t.Errorf("over %s: %v, %v", network, reply, err)
		}
	}
	cancel()
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d: %s", code, errs.String())
		}
	case <-time.After(5 * time.Second):
		t.Error("it does not end")
	}
}

// netctl dns is ready when it knows the cluster and listens, and told to end it is
// ready no more but goes on answering until its clients have gone elsewhere.
func TestDNSDrains(t *testing.T) {
	t.Parallel()
	dir, addr := manifestDir(t), freeAddr(t)
	short, err := os.MkdirTemp("", "nd") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	socket := filepath.Join(short, "s")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	var out bytes.Buffer
	const drain = 2 * time.Second
	go func() {
		args := []string{"dns", "--cluster-dir", dir, "--listen", addr.String(), "--probe-socket", socket, "--drain", drain.String()}
		ended <- run(ctx, args, streams{in: strings.NewReader(""), out: &out, err: &out})
	}()
	ready := func(want int) {
		t.Helper()
		code := -1
		for end := time.Now().Add(10 * time.Second); code != want && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			code, _, _ = call(t.Context(), "probe", "ready", "--socket", socket)
		}
		if code != want {
			t.Fatalf("probe's exit code %d, want %d", code, want)
		}
	}
	ready(0)
	cancel()
	ready(1)
	q := new(dns.Msg)
	q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	c := &dns.Client{Timeout: time.Second}
	if reply, _, err := c.Exchange(q, addr.String()); err != nil || len(reply.Answer) != 1 {
		t.Errorf("while it drains: %v, %v", reply, err)
	}
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d: %s", code, out.String())
		}
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
}

// The manifests in docs/parts.md call commands and flags that there are.
func TestPartsManifestsCallWhatExists(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/parts.md")
	if err != nil {
		t.Fatal(err)
	}
	flag := regexp.MustCompile(`--[a-z][a-z-]*`)
	for _, name := range []string{"proxy", "dns"} {
		cmd, _, err := newRoot(streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard}).Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		_, manifest, found := strings.Cut(string(text), "metadata: {name: netctl-"+name+", namespace: kube-system}\n---")
		manifest, _, ends := strings.Cut(manifest, "```")
		flags := flag.FindAllString(manifest, -1)
		if !found || !ends || len(flags) < 3 {
			t.Fatalf("no manifest of %s with flags in it: %v", name, flags)
		}
		for _, f := range flags {
			if f != "--socket" && cmd.Flags().Lookup(f[2:]) == nil { // the probe's
				t.Errorf("netctl %s has no flag %s", name, f)
			}
		}
	}
}

func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}
