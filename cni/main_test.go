package cni_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/cni/wire"
)

// pluginDir holds the real plugin program, built once, under all its names.
var pluginDir string

// serverEnv makes this test binary an agent of its own process, so that tests
// can stop and kill it.
const serverEnv = "NETCTL_TEST_CNI_SERVER"

func TestMain(m *testing.M) {
	if socket := os.Getenv(serverEnv); socket != "" {
		os.Exit(serveAlone(socket))
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "netctl-cni")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		pluginDir = dir
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "netctl-cni"), "./plugin")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build plugin: %v\n%s", err, out)
			return 1
		}
		if err := os.Symlink("netctl-cni", filepath.Join(dir, "loopback")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func serveAlone(socket string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := cni.NewServer(cni.Config{Socket: socket, Backend: newAgent(), Logger: quiet()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.Restored()
	if err := s.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// agent is a Backend that keeps ports in a map and holds the Server to its
// promises: no two calls for one container at once.
type agent struct {
	mu      sync.Mutex
	ports   map[cni.ID]cni.Attachment // guarded by mu
	busy    map[string]bool           // guarded by mu
	faults  []string                  // guarded by mu
	dels    int                       // guarded by mu
	valid   []cni.ID                  // of the last GC; guarded by mu
	at, top int                       // calls at once; guarded by mu

	// onAdd and the others run before the work; an error is the result.
	onAdd    func(ctx context.Context, a cni.Attachment) error
	afterAdd func(ctx context.Context)
	onDel    func(ctx context.Context, id cni.ID) error
	onCheck  func(a cni.Attachment, prev cni.Result) error
	onStatus func(ctx context.Context) error
}

func newAgent() *agent {
	return &agent{ports: map[cni.ID]cni.Attachment{}, busy: map[string]bool{}}
}

func (g *agent) enter(container string) func() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy[container] {
		g.faults = append(g.faults, "two calls at once for "+container)
	}
	g.busy[container] = true
	g.at++
	g.top = max(g.top, g.at)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.busy[container] = false
		g.at--
	}
}

func (g *agent) Add(ctx context.Context, a cni.Attachment) (cni.Result, error) {
	defer g.enter(a.ContainerID)()
	if a.Netns == nil {
		return cni.Result{}, errors.New("no netns")
	}
	if g.onAdd != nil {
		if err := g.onAdd(ctx, a); err != nil {
			return cni.Result{}, err
		}
	}
	g.mu.Lock()
	_, exists := g.ports[a.ID]
	if !exists {
		g.ports[a.ID] = a
	}
	g.mu.Unlock()
	if exists {
		return cni.Result{}, fmt.Errorf("%s: %w", a.ID, cni.ErrExists)
	}
	if g.afterAdd != nil {
		g.afterAdd(ctx)
	}
	return cni.Result{
		MTU:       1420,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32"), netip.MustParsePrefix("fd00::3/128")},
		Routes:    []cni.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}, {Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::1")}},
	}, nil
}

func (g *agent) Del(ctx context.Context, id cni.ID) error {
	defer g.enter(id.ContainerID)()
	if g.onDel != nil {
		if err := g.onDel(ctx, id); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dels++
	delete(g.ports, id)
	return nil
}

func (g *agent) Check(_ context.Context, a cni.Attachment, prev cni.Result) error {
	defer g.enter(a.ContainerID)()
	if g.onCheck != nil {
		return g.onCheck(a, prev)
	}
	return nil
}

func (g *agent) GC(_ context.Context, valid []cni.ID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.valid = valid
	return nil
}

func (g *agent) Status(ctx context.Context) error {
	if g.onStatus != nil {
		return g.onStatus(ctx)
	}
	return nil
}

func (g *agent) len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.ports)
}

func (g *agent) deleted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dels
}

// node is a place with a socket path, and a server when it is started.
type node struct {
	t      *testing.T
	dir    string
	socket string
	agent  *agent
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "cni") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, socket: filepath.Join(dir, "run", "cni.sock"), agent: newAgent()}
	t.Cleanup(func() {
		n.agent.mu.Lock()
		defer n.agent.mu.Unlock()
		for _, f := range n.agent.faults {
			t.Error(f)
		}
	})
	return n
}

// start runs a server; restored says whether it may serve at once.
func (n *node) start(restored bool) (*cni.Server, func()) {
	n.t.Helper()
	s, err := cni.NewServer(cni.Config{Socket: n.socket, Backend: n.agent, Logger: quiet()})
	if err != nil {
		n.t.Fatal(err)
	}
	if restored {
		s.Restored()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				n.t.Errorf("run: %v", err)
			}
		})
	}
	n.t.Cleanup(stop)
	eventually(n.t, "socket", func() bool { _, err := os.Stat(n.socket); return err == nil })
	if restored {
		<-s.Serving()
	}
	return s, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// list is a conflist of one version.
func (n *node) list(version string) *libcni.NetworkConfigList {
	n.t.Helper()
	raw, err := cni.Conflist{Socket: n.socket, Capabilities: []string{"bandwidth", "io.kubernetes.cri.pod-annotations", "ips", "portMappings"}}.Render(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		n.t.Fatal(err)
	}
	delete(m, "cniVersions")
	m["cniVersion"] = version
	if raw, err = json.Marshal(m); err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (n *node) libcni() *libcni.CNIConfig {
	// Left to itself, libcni would make it on first use, which is a data race.
	run := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}}
	return libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, filepath.Join(n.dir, "cache"), run)
}

// netns returns the path of a network namespace that lives as long as the
// test.
func netns(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.SysProcAttr = newNetns()
	if err := cmd.Start(); err != nil {
		t.Skipf("network namespaces cannot be created here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

// newNetns starts a process in a network namespace of its own, without root
// inside a user namespace of its own.
func newNetns() *syscall.SysProcAttr {
	if os.Getuid() == 0 {
		return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
}

func container(id, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: id, NetNS: netns, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_UID", "4e7f"}, {"X", "y"}},
	}
}

// run executes the plugin as a runtime does and returns its answer.
type answer struct {
	out    string
	stderr string
	exit   int
	took   time.Duration
}

// code returns the error code on stdout, 0 when there is none.
func (a answer) code() wire.Code {
	var e wire.Error
	_ = json.Unmarshal([]byte(a.out), &e)
	return e.Code
}

func (n *node) command(op, config string, env ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(pluginDir, "netctl-cni"))
	cmd.Env = append([]string{"CNI_COMMAND=" + op, "CNI_PATH=" + pluginDir}, env...)
	cmd.Stdin = strings.NewReader(config)
	return cmd
}

func execute(t *testing.T, cmd *exec.Cmd) answer {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	a := answer{out: out.String(), stderr: errs.String(), took: time.Since(start)}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		a.exit = exit.ExitCode()
	} else if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	return a
}

// config is a plugin's stdin.
func (n *node) config(version, more string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"netctl","type":"netctl-cni","socket":%q%s}`, version, n.socket, more)
}

func (n *node) run(op, more string, env ...string) answer {
	n.t.Helper()
	return execute(n.t, n.command(op, n.config("1.1.0", more), env...))
}

// status asks until the answer is the wanted one, for a while: on a machine
// that is busy with other tests, the agent's answer may miss the plugin's
// limit.
func (n *node) status(want wire.Code) answer {
	n.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		if a := n.run("STATUS", ""); a.code() == want || time.Now().After(end) {
			return a
		}
	}
}

// slack is what a busy machine may add to a limit.
const slack = 5 * time.Second

func attach(id, netns string) []string {
	return []string{"CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0", "CNI_NETNS=" + netns}
}

// ownServer starts an agent in a process of its own.
func (n *node) ownServer() *exec.Cmd {
	n.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), serverEnv+"="+n.socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(n.t, "agent process", func() bool { return n.run("STATUS", "").exit == 0 })
	return cmd
}
