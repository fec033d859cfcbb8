package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
)

// program is the netctl that the labs of these tests consist of, and plugin the
// CNI plugin that is embedded in it, built once. With the race detector on, the
// program has one, too; the demo, a thousand short commands, is run by released,
// which never has.
var program, released, plugin string

// atOnce bounds how many labs live at the same time.
var atOnce = make(chan struct{}, 2)

func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		fmt.Fprintln(os.Stderr, "the test was installed as the CNI plugin")
		os.Exit(1)
	}
	os.Exit(func() int {
		// A program with the race detector would sleep a second at its end.
		if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		dir, err := os.MkdirTemp("", "nctl")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if err := os.Chmod(dir, 0o755); err != nil { // users other than root run it, too
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		program, released, plugin = filepath.Join(dir, "netctl"), filepath.Join(dir, "released"), filepath.Join(dir, "netctl-cni")
		if err := build(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build builds netctl with the CNI plugin embedded, as make does, but without
// writing into the source tree.
func build(dir string) error {
	module, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	overlay := filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, "cni/bin/netctl-cni"): plugin}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		return err
	}
	builds := [][]string{
		{"CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", plugin, "./cni/plugin"},
		{"CGO_ENABLED=0", "go", "build", "-trimpath", "-overlay", overlay, "-o", released, "./cmd/netctl"},
	}
	if raceDetector {
		builds = append(builds, []string{"CGO_ENABLED=1", "go", "build", "-race", "-trimpath", "-overlay", overlay, "-o", program, "./cmd/netctl"})
	} else {
		program = released
	}
	for _, b := range builds {
		cmd := exec.Command(b[1], b[2:]...)
		cmd.Dir, cmd.Env = module, append(os.Environ(), b[0])
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(b, " "), err, text)
		}
	}
	return nil
}

// needKernel skips a test where the kernel lacks what a lab is made of.
func needKernel(t *testing.T) {
	t.Helper()
	for _, err := range []error{kernel.HaveNamespaces(), kernel.HaveTUN()} {
		if err != nil {
			t.Skipf("no lab here: %v", err)
		}
	}
}

// turn waits until the test may have a lab.
func turn(t *testing.T) {
	t.Helper()
	needKernel(t)
	atOnce <- struct{}{}
	t.Cleanup(func() { <-atOnce })
}

// rootDir is a directory for labs whose path is short: sockets live in it.
func rootDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nl") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "r")
}

var names struct {
	sync.Mutex
	n int
}

// labNameFor returns a name that no other lab on this machine has.
func labNameFor(*testing.T) string {
	names.Lock()
	defer names.Unlock()
	names.n++
	return fmt.Sprintf("t%d-%d", os.Getpid(), names.n)
}

// up brings a lab up for one test, with manifests applied, and checks at its
// end that nothing is left of it and that no agent saw a race or a panic.
func up(t *testing.T, cfg Config, manifests ...string) *Lab {
	t.Helper()
	turn(t)
	if cfg.Name == "" {
		cfg.Name = labNameFor(t)
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	if cfg.Families == "" {
		cfg.Families = IPv4
	}
	root := rootDir(t)
	l, err := New(cfg, Options{Root: root, Exe: program, Plugin: openPlugin, Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { down(t, l, root) })
	if err := l.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, l, manifests...)
	return l
}

func openPlugin() (io.ReadCloser, error) { return os.Open(plugin) }

func down(t *testing.T, l *Lab, root string) {
	t.Helper()
	for _, node := range l.NodeNames() {
		log, err := os.ReadFile(l.path("nodes", node, "agent.log"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic", "fatal error"} {
			if i := bytes.Index(log, []byte(bad)); i >= 0 {
				t.Errorf("agent of %s: %s", node, log[max(0, i-200):min(len(log), i+4000)])
			}
		}
		if t.Failed() {
			t.Logf("agent of %s: %s", node, log[max(0, len(log)-4000):])
		}
	}
	if l.lock == nil { // the test gave it back
		again, err := Open(l.cfg.Name, Options{Root: root, Exe: program})
		if err != nil {
			t.Fatal(err)
		}
		l = again
	}
	if err := errors.Join(l.Down(), l.Close()); err != nil {
		t.Errorf("down: %v", err)
	}
	checkNothingLeft(t, l.cfg.Name, root)
}

// checkNothingLeft looks for all that a lab may leave on a machine.
func checkNothingLeft(t *testing.T, name, root string) {
	t.Helper()
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "netctl."+name+".") {
			t.Errorf("namespace %s is left", e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/netctl."+name+".") || strings.Contains(line, filepath.Join(root, name)+"/") {
			t.Errorf("mount is left: %s", line)
		}
	}
	if left, err := os.ReadDir(root); err == nil {
		t.Errorf("directory of labs is left with %d entries", len(left))
	}
	for _, p := range processesOf(filepath.Join(root, name)) {
		t.Errorf("process %s is left", p)
	}
	links, err := kernel.Interfaces(nil)
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if slices.Contains([]string{"br0", "out0", "n1", "n2", "n3"}, l.Name) {
			t.Errorf("interface %s is left on the machine", l.Name)
		}
	}
}

// processesOf lists the processes that run in a lab: its directory is on their
// PATH.
func processesOf(dir string) []string {
	entries, _ := os.ReadDir("/proc")
	var out []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if bytes.Contains(env, []byte(dir+"/")) {
			cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
			out = append(out, e.Name()+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return out
}

func apply(t *testing.T, l *Lab, manifests ...string) {
	t.Helper()
	for _, m := range manifests {
		found, err := cluster.ParseManifests([]byte(m), "test.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Apply(t.Context(), found); err != nil {
			t.Fatal(err)
		}
	}
}

// netctl runs the program with a lab root and returns its exit code and output.
func netctl(ctx context.Context, root string, args ...string) (code int, stdout, stderr string) {
	return execute(ctx, program, root, args...)
}

func execute(ctx context.Context, program, root string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "NETCTL_LAB_ROOT="+root)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		code = exit.ExitCode()
	default:
		return -1, "", err.Error()
	}
	return code, out.String(), errs.String()
}

// eventually tries until something is so.
func eventually(t *testing.T, limit time.Duration, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// podYAML is a pod on a node that runs a command; none is the web server.
func podYAML(name, node string, command ...string) string {
	c := "image: web, ports: [{containerPort: 80}]"
	if len(command) > 0 {
		data, _ := json.Marshal(command)
		c = "command: " + string(data)
	}
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeName: %s
  containers: [{name: main, %s}]
`, name, name, node, c)
}

// echoYAML is a pod with TCP and UDP echo servers on port 7, and its service.
func echoYAML(name, node string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  containers:
    - {name: main, command: [netctl, lab, serve, "--tcp=:7", "--udp=:7"], ports: [{containerPort: 7}]}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: tcp, port: 7, protocol: TCP}, {name: udp, port: 7, protocol: UDP}]
`, name, node)
}
