package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/test/restart/agents"
	"github.com/netctl/netctl/test/restart/load"
)

func TestMain(m *testing.M) {
	if os.Getenv(load.ServeVariable) != "" { // a child of ours
		if err := start(context.Background(), os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// build builds netctl with the CNI plugin embedded, without writing into the source
// tree.
func build(t *testing.T) (netctl, other string, plugin func() (io.ReadCloser, error)) {
	t.Helper()
	dir := t.TempDir()
	module, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	other = filepath.Join(dir, "other", "netctl") // processes are known by their name
	netctl, file, overlay := filepath.Join(dir, "netctl"), filepath.Join(dir, "netctl-cni"), filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, "cni/bin/netctl-cni"): file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags=-s -w", "-o", file, "./cni/plugin"},
		{"build", "-trimpath", "-overlay", overlay, "-o", netctl, "./cmd/netctl"},
		{"build", "-trimpath", "-overlay", overlay, "-tags=netctl_otherlayout", "-o", other, "./cmd/netctl"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return netctl, other, func() (io.ReadCloser, error) { return os.Open(file) }
}

// TestRestart is the smallest run: every load, each kind once. Whatever has to be
// zero is zero.
func TestRestart(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a lab")
	}
	for _, need := range []error{kernel.HaveNamespaces(), kernel.HaveTUN()} {
		if need != nil {
			t.Skipf("no lab here: %v", need)
		}
	}
	loads := ""
	if err := load.HaveIperf(); err != nil {
		t.Log(err)
		loads = "^(udp|bulk|idle|new|loyal|dns|host|egress|nodeport)$"
	}
	netctl, other, plugin := build(t)
	var out bytes.Buffer
	o := options{
		netctl: netctl, other: other, plugin: plugin, quick: true, name: fmt.Sprintf("r%d", os.Getpid()), loads: regexp.MustCompile(loads),
		kinds: regexp.MustCompile("^(crash|handover|handed-back|upgrade)$"), idle: 200, mbits: 2, packets: 100, connects: 20, every: time.Second, times: 2, out: &out, log: t.Output(),
	}
	d, err := newLabDriver(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	r, err := run(t.Context(), o, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	if err := r.verdict(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"figure restart-crash-times 2\n", "figure restart-handover-times 2\n",
		"figure restart-handed-back-udp-lost 0\n", "figure restart-upgrade-times 2\n", "figure restart-upgrade-udp-lost 0\n", "figure restart-crash-loyal-wrong 0\n",
		"figure restart-crash-idle-open 200\n", "figure restart-crash-idle-lost 0\n", "figure restart-handover-udp-wrong 0\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q was not said", want)
		}
	}
}

// aReport is one of two kinds, of which the second was bad.
func aReport(markdown bool) *report {
	good, bad := &result{kind: "nothing", times: 2}, &result{kind: "crash", times: 2}
	for _, res := range []*result{good, bad} {
		res.loads = map[string]*seen{}
		res.add("idle", load.Counts{Sent: 10, Gap: time.Millisecond})
	}
	bad.add("idle", load.Counts{Lost: 2, Resets: 1, Gap: 3 * time.Millisecond})
	bad.add("new", load.Counts{Sent: 1000, Slow: 5})
	return &report{
		options: options{markdown: markdown}, results: []*result{good, bad},
		before: agents.Weight{Processes: 2, Files: 40, RSS: 50e6}, after: agents.Weight{Processes: 3, Files: 140, RSS: 60e6},
	}
}

func TestReportPrints(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	aReport(true).print(&out)
	figures, table, _ := strings.Cut(out.String(), "\n\n")
	for _, want := range []string{
		"figure restart-crash-idle-lost 2\n", "figure restart-nothing-idle-lost 0\n", "figure restart-crash-new-slow 0.5 %\n",
		"figure restart-agents-files-before 40\n", "figure restart-agents-rss-mb-after 60\n",
	} {
		if !strings.Contains(figures+"\n", want) {
			t.Errorf("%q is not in\n%s", want, figures)
		}
	}
	want := `|  | nothing ×2 | crash ×2 |
|---|---:|---:|
| Idle TCP connections | 10 | 10 |
| … lost | 0 | 2 |
| … of these, reset | 0 | 1 |
| … at a wrong backend | 0 | 0 |
| New TCP connections |  | 1000 |
| … that took over 1 s, % |  | 0.5 |
| … that failed |  | 0 |
| … that were refused or reset |  | 0 |
`
	if diff := cmp.Diff(want, table); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	aReport(false).print(&out)
	if !strings.Contains(out.String(), "crash ×2") || strings.Contains(out.String(), "|") {
		t.Errorf("not a table for people:\n%s", out.String())
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	err := aReport(false).verdict()
	want := `FAILED crash: idle-lost is 2 and has to be 0
FAILED crash: idle-resets is 1 and has to be 0
FAILED growth: processes of the agents were 2 and are 3`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		idle int
		ok   bool
	}{
		{nil, 10000, true},
		{[]string{"-quick"}, 1000, true},
		{[]string{"-quick", "-idle=50"}, 50, true},
		{[]string{"-loads=("}, 0, false},
		{[]string{"-packets=0"}, 0, false},
		{[]string{"-kinds=("}, 0, false},
	} {
		o, err := parse(tt.args)
		if (err == nil) != tt.ok || err == nil && o.idle != tt.idle {
			t.Errorf("%v: %d idle, %v", tt.args, o.idle, err)
		}
	}
	o, err := parse([]string{"-loads=udp|dns"})
	if err != nil || !o.loads.MatchString("dns") || o.loads.MatchString("idle") {
		t.Errorf("loads %v, %v", o.loads, err)
	}
}
