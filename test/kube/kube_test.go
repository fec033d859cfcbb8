package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	good := options{Nodes: 3, CNI: cniNetctl, IPForward: "1"}
	for _, c := range []struct {
		name   string
		change func(*options)
		want   string // in the error; "" for none
	}{
		{"defaults", func(*options) {}, ""},
		{"pod subnet", func(o *options) { o.PodSubnet = "10.32.0.0/16" }, ""},
		{"dual stack", func(o *options) { o.PodSubnet = "10.32.0.0/16,fd00::/56" }, ""},
		{"no nodes", func(o *options) { o.Nodes = 0 }, "--nodes=0"},
		{"too many nodes", func(o *options) { o.Nodes = 51 }, "--nodes=51"},
		{"unknown network", func(o *options) { o.CNI = "other" }, "--cni=other"},
		{"no subnet", func(o *options) { o.PodSubnet = "10.32.0.0" }, "--pod-subnet"},
		{"rp_filter", func(o *options) { o.RPFilter = "3" }, "--rp-filter=3"},
		{"ip_forward", func(o *options) { o.IPForward = "" }, "--ip-forward="},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := good
			c.change(&o)
			err := o.validate()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("validate() = %v, want %q in it", err, c.want)
			}
		})
	}
	ptp := options{Nodes: 1, CNI: cniPTP, IPForward: "1"}
	if err := ptp.validate(); err != nil || ptp.PodSubnet != ptpSubnet {
		t.Errorf("ptp: pod subnet %q, %v, want %s", ptp.PodSubnet, err, ptpSubnet)
	}
}

func TestNodeNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"node1": true, "node50": true, "node0": false, "node51": false, "node01": false, "node": false, "outside": false, "": false,
	} {
		if _, err := number(name); (err == nil) != want {
			t.Errorf("number(%q): %v, want good: %v", name, err, want)
		}
	}
	if got, want := nodeAddress("node3").String(), "192.0.2.13"; got != want {
		t.Errorf("address of node3: got %s, want %s", got, want)
	}
}

const report = `[{"SpecReports":[
 {"LeafNodeType":"It","ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeText":"should serve","State":"passed","RunTime":1500000000,"NumAttempts":1},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["[sig-network] DNS"],"LeafNodeText":"a | b","State":"failed","RunTime":2000000000,"NumAttempts":1,"Failure":{"Message":"no answer\nmore"}},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["[sig-network] Y"],"LeafNodeText":"needs nodes","State":"skipped","Failure":{"Message":"needs 3 nodes"}},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["[sig-apps] X"],"LeafNodeText":"not chosen","State":"skipped"},
 {"LeafNodeType":"It","LeafNodeText":"pending","State":"pending"},
 {"LeafNodeType":"SynchronizedBeforeSuite","State":"passed"}]}]`

func TestResults(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(report), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := readResults(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.summary(), "e2e: 1 passed, 1 failed, 1 skipped themselves"; got != want {
		t.Errorf("summary: got %q, want %q", got, want)
	}
	if got, want := r.bad().Error(), "failed: [sig-network] DNS a | b: no answer\nskipped: [sig-network] Y needs nodes: needs 3 nodes"; got != want {
		t.Errorf("bad: got %q, want %q", got, want)
	}
	want := "`make e2e FOCUS='x'`: 1 passed, 1 failed, 1 skipped themselves.\n\n| spec | result | seconds |\n|---|---|--:|\n" +
		"| [sig-network] DNS a \\| b | failed: no answer | 2 |\n" +
		"| [sig-network] Services should serve | passed | 2 |\n" +
		"| [sig-network] Y needs nodes | skipped: needs 3 nodes | 0 |\n"
	if diff := cmp.Diff(want, r.table(suite{focus: "x"})); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestNothingRan: a focus that matches nothing is not a success.
func TestNothingRan(t *testing.T) {
	t.Parallel()
	if (results{}).bad() == nil {
		t.Error("no spec ran, and nobody complains")
	}
	failed := results{specs: []result{{State: "passed"}}, setup: []result{{LeafNodeType: "SynchronizedBeforeSuite", State: "failed"}}}
	if failed.bad() == nil {
		t.Error("the suite's setup failed, and nobody complains")
	}
}

func TestReplaceSection(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	text := "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results: two -->\nstays\n<!-- end -->\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again and again the same
		if err := replaceSection(path, "one", "new\n"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Replace(text, "old", "new", 1), string(got)); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
	if err := replaceSection(path, "three", "new\n"); err == nil {
		t.Error("a section that is not there was replaced")
	}
}

// TestTell: ginkgo's output becomes one line per spec.
func TestTell(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	(&Cluster{out: &out}).tell(strings.NewReader(strings.Join([]string{
		"• [7.900 seconds]", "[sig-network] A does [Conformance] [sig-network, Conformance]", "noise [sig-network] B",
		"• [FAILED] [132.996 seconds]", "[sig-network] C [It] fails [sig-network]", "",
	}, "\n")))
	want := "kube: ok        7.900 seconds  [sig-network] A does [Conformance]\n" +
		"kube: FAILED    132.996 seconds [sig-network] C [It] fails\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestFocus(t *testing.T) {
	t.Parallel()
	smoke, all := regexp.MustCompile(smokeFocus), regexp.MustCompile(conformanceFocus)
	for spec, want := range map[string]bool{
		"[sig-network] DNS should provide DNS for services [Conformance]":                                             true,
		"[sig-network] HostPort validates that there is no conflict between pods [LinuxOnly] [Conformance]":           true,
		"[sig-network] Services should be able to create a functioning NodePort service [Conformance]":                true,
		"[sig-network] Services should be able to create a functioning NodePort service":                              false,
		"[sig-network] Ingress API should support creating Ingress API operations [Conformance]":                      false,
		"[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp [LinuxOnly]": false,
	} {
		if got := smoke.MatchString(spec); got != want {
			t.Errorf("smoke matches %q: %v, want %v", spec, got, want)
		}
		if want && !all.MatchString(spec) {
			t.Errorf("%q is no conformance spec of sig-network", spec)
		}
	}
}

func TestKubeadmConfig(t *testing.T) {
	t.Parallel()
	c := &Cluster{options: options{PodSubnet: "10.32.0.0/16"}}
	for _, k := range []struct {
		init      bool
		want, not string
	}{
		{true, "podSubnet: \"10.32.0.0/16\"", "JoinConfiguration"},
		{true, "advertiseAddress: 192.0.2.12", "discovery"},
		{false, "apiServerEndpoint: \"192.0.2.11:6443\"", "ClusterConfiguration"},
	} {
		got, err := c.kubeadmConfig("node2", k.init)
		if err != nil || !strings.Contains(got, k.want) || strings.Contains(got, k.not) {
			t.Errorf("init %v: %v: want %q and not %q in\n%s", k.init, err, k.want, k.not, got)
		}
	}
}

// TestDNSOutside asks the name server of the host outside.
func TestDNSOutside(t *testing.T) {
	t.Parallel()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: socket, Handler: dns.HandlerFunc(answerOutside), NotifyStartedFunc: func() { close(started) }}
	done := make(chan error)
	go func() { done <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		<-done
	})
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		n     int
	}{
		{"outside.example.", dns.TypeA, dns.RcodeSuccess, 1},
		{"WWW.Outside.example.", dns.TypeA, dns.RcodeSuccess, 1},
		{"outside.example.", dns.TypeAAAA, dns.RcodeSuccess, 0},
		{"notoutside.example.", dns.TypeA, dns.RcodeNameError, 0},
		{"kubernetes.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, 0},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		answer, err := dns.ExchangeContext(ctx, new(dns.Msg).SetQuestion(c.name, c.kind), socket.LocalAddr().String())
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if answer.Rcode != c.rcode || len(answer.Answer) != c.n {
			t.Errorf("%s: got %s with %d answers, want %s with %d", c.name, dns.RcodeToString[answer.Rcode], len(answer.Answer), dns.RcodeToString[c.rcode], c.n)
		}
	}
}

// TestCommands: the tree of commands is well-formed, and what needs a cluster
// says so.
func TestCommands(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("the commands need root")
	}
	for _, args := range [][]string{
		{"usage"}, {"node", "reboot", "node1"}, {"restart", "kubelet", "node1"}, {"apiserver", "stop"}, {"e2e"}, {"import", "x.tar"},
	} {
		c := command(io.Discard)
		c.SetArgs(append(args, "--name=absent", "--cache="+t.TempDir()))
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), `cluster "absent" is not up`) {
			t.Errorf("%v: got %v, want that it is not up", args, err)
		}
	}
	c := command(io.Discard)
	c.SetArgs([]string{"down", "--name=absent", "--cache=" + t.TempDir()})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Errorf("down without a cluster: %v", err)
	}
}
