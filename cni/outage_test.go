package cni_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/cni/queue"
	"github.com/netctl/netctl/cni/wire"
)

func TestAgentDown(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	if a := n.run("ADD", "", attach("pod1", ns)...); a.code() != wire.CodeUnavailable || !strings.Contains(a.out, "start the agent") {
		t.Errorf("add: %s", a.out)
	}
	if a := n.run("STATUS", ""); a.code() != wire.CodeUnavailable || a.took > time.Second+slack {
		t.Errorf("status: %s in %v", a.out, a.took)
	}
	if a := n.run("CHECK", "", attach("pod1", ns)...); a.code() != wire.CodeTryAgain {
		t.Errorf("check: %s", a.out)
	}
	if a := n.run("GC", ""); a.code() != wire.CodeTryAgain {
		t.Errorf("gc: %s", a.out)
	}
	if a := n.run("VERSION", ""); a.exit != 0 || !strings.Contains(a.out, `"0.3.1"`) {
		t.Errorf("version: exit %d %s", a.exit, a.out)
	}
	for range 2 { // a repeated deletion is one record
		if a := n.run("DEL", "", attach("pod1", "")...); a.exit != 0 || !strings.Contains(a.stderr, "queued") {
			t.Errorf("del: exit %d %s %s", a.exit, a.out, a.stderr)
		}
	}
	entries, err := queue.Beside(n.socket).List()
	if err != nil || len(entries) != 1 {
		t.Fatalf("queue: %v %v, want one entry", entries, err)
	}
}

func TestQueuedDeletionComesBeforeAddition(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	_, stop := n.start(true)
	if a := n.run("ADD", "", attach("pod1", ns)...); a.exit != 0 {
		t.Fatal(a.out)
	}
	stop()
	if a := n.run("DEL", "", attach("pod1", "")...); a.exit != 0 {
		t.Fatal(a.out)
	}
	if n.agent.len() != 1 {
		t.Fatal("deleted without an agent")
	}
	n.start(true)
	if n.agent.len() != 0 {
		t.Error("queued deletion was not carried out before serving")
	}
	if a := n.run("ADD", "", attach("pod1", ns)...); a.exit != 0 {
		t.Errorf("add after the deletion: %s", a.out)
	}
	// One that a plugin leaves while the agent serves comes before an ADD of
	// its container, too.
	if err := queue.Beside(n.socket).Push(queue.Entry{ContainerID: "pod1", IfName: "eth0"}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if a := n.run("ADD", "", attach("pod1", ns)...); a.exit != 0 {
		t.Errorf("add with a queued deletion: %s", a.out)
	}
	if n.agent.len() != 1 {
		t.Errorf("%d ports, want the new one", n.agent.len())
	}
	if entries, _ := queue.Beside(n.socket).List(); len(entries) != 0 {
		t.Errorf("queue still holds %v", entries)
	}
}

func TestFailingQueuedDeletionBlocksOnlyItsContainer(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	n.agent.onDel = func(_ context.Context, id cni.ID) error {
		if id.ContainerID == "bad" {
			return errors.New("cannot")
		}
		return nil
	}
	if a := n.run("DEL", "", attach("bad", "")...); a.exit != 0 {
		t.Fatal(a.out)
	}
	n.start(true)
	if a := n.run("ADD", "", attach("bad", ns)...); a.code() != wire.CodeTryAgain || !strings.Contains(a.out, "earlier deletion") {
		t.Errorf("blocked container: %s", a.out)
	}
	if a := n.run("ADD", "", attach("good", ns)...); a.exit != 0 {
		t.Errorf("other container: %s", a.out)
	}
}

func TestDeletionThatFailsIsKept(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	n.agent.onDel = func(context.Context, cni.ID) error { return errors.New("disk is full") }
	if a := n.run("DEL", "", attach("pod1", "")...); a.exit != 0 {
		t.Errorf("del: %s", a.out)
	}
	if !queue.Beside(n.socket).Has(queue.Entry{ContainerID: "pod1", IfName: "eth0"}) {
		t.Error("failed deletion is not in the queue")
	}
}

func TestFullQueue(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	q := queue.Beside(n.socket)
	for i := range queue.Max {
		if err := q.Push(queue.Entry{ContainerID: fmt.Sprint("pod", i), IfName: "eth0"}, time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if a := n.run("DEL", "", attach("more", "")...); a.exit != 0 || !strings.Contains(a.stderr, "full") {
		t.Errorf("del: exit %d %s %s", a.exit, a.out, a.stderr)
	}
	if a := n.run("DEL", "", attach("pod7", "")...); a.exit != 0 || strings.Contains(a.stderr, "full") {
		t.Errorf("del that waits already: exit %d %s %s", a.exit, a.out, a.stderr)
	}
	var log syncBuffer
	s, err := cni.NewServer(cni.Config{Socket: n.socket, Backend: n.agent, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.Restored()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Serving()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n.agent.deleted() != queue.Max {
		t.Errorf("%d deletions carried out, want %d", n.agent.deleted(), queue.Max)
	}
	if !strings.Contains(log.String(), "deletions were lost") {
		t.Error("the log does not tell of the lost deletion")
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestQueueThatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := os.MkdirAll(filepath.Dir(n.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.socket+".queue", nil, 0o600); err != nil { // a file where the directory goes
		t.Fatal(err)
	}
	if a := n.run("DEL", "", attach("pod1", "")...); a.code() != wire.CodeTryAgain || !strings.Contains(a.out, "cannot be noted") {
		t.Errorf("got exit %d %s", a.exit, a.out)
	}
}

func TestRestoring(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	s, _ := n.start(false)
	if a := n.run("ADD", "", attach("pod1", ns)...); a.code() != wire.CodeTryAgain {
		t.Errorf("add: %s", a.out)
	}
	if a := n.run("CHECK", `,"prevResult":{"interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.0.0.1/32"}]}`, attach("pod1", ns)...); a.code() != wire.CodeTryAgain {
		t.Errorf("check: %s", a.out)
	}
	if a := n.run("GC", `,"cni.dev/attachments":[]`); a.code() != wire.CodeTryAgain {
		t.Errorf("gc: %s", a.out)
	}
	if a := n.run("STATUS", ""); a.code() != wire.CodeUnavailable {
		t.Errorf("status without a healthy past: %s", a.out)
	}
	if a := n.run("DEL", "", attach("pod1", "")...); a.exit != 0 {
		t.Errorf("del: %s", a.out)
	}
	if n.agent.deleted() != 0 {
		t.Error("deleted before the agent knows its ports")
	}
	s.Restored()
	s.Restored()
	<-s.Serving()
	if n.agent.deleted() != 1 {
		t.Errorf("%d deletions after restoring, want 1", n.agent.deleted())
	}
	if a := n.status(0); a.exit != 0 {
		t.Errorf("status: %s", a.out)
	}
}

func TestStatusGrace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	_, stop := n.start(true)
	if a := n.status(0); a.exit != 0 {
		t.Fatal(a.out)
	}
	stop()
	if a := n.run("STATUS", ""); a.exit != 0 {
		t.Errorf("status just after the agent went: %s", a.out)
	}
	if a := n.run("ADD", "", attach("pod1", ns)...); a.code() != wire.CodeTryAgain {
		t.Errorf("add just after the agent went: %s", a.out)
	}
	n.start(false)
	if a := n.run("STATUS", ""); a.exit != 0 {
		t.Errorf("status while the agent restores: %s", a.out)
	}

	file := n.socket + ".healthy"
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	boot, seconds, _ := strings.Cut(strings.TrimSpace(string(good)), " ")
	var up float64
	if _, err := fmt.Sscan(seconds, &up); err != nil {
		t.Fatal(err)
	}
	for name, record := range map[string]string{
		"a minute ago":     fmt.Sprintf("%s %.2f\n", boot, up-61),
		"in the future":    fmt.Sprintf("%s %.2f\n", boot, up+1000),
		"another boot":     fmt.Sprintf("%s %s\n", strings.Repeat("0", 36), seconds),
		"empty":            "",
		"not a number":     boot + " NaN\n",
		"torn":             boot[:20],
		"far beyond bound": strings.Repeat("x", 1<<16),
	} {
		if err := os.WriteFile(file, []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		if a := n.run("STATUS", ""); a.code() != wire.CodeUnavailable {
			t.Errorf("%s: got exit %d %s, want code 50", name, a.exit, a.out)
		}
	}
}

func TestHungAgent(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the plugin's 10 s limit")
	}
	n := newNode(t)
	ns := netns(t)
	agent := n.ownServer()
	if err := agent.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if a := n.run("STATUS", ""); a.exit != 0 || a.took > time.Second+slack {
		t.Errorf("status: %s in %v, want the grace within 1 s", a.out, a.took)
	}
	if err := os.Remove(n.socket + ".healthy"); err != nil {
		t.Fatal(err)
	}
	if a := n.run("STATUS", ""); a.code() != wire.CodeUnavailable || a.took > time.Second+slack {
		t.Errorf("status without grace: %s in %v", a.out, a.took)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if a := n.run("ADD", "", attach("pod1", ns)...); a.code() != wire.CodeTryAgain || a.took > 10*time.Second+slack {
			t.Errorf("add: %s in %v", a.out, a.took)
		}
	})
	wg.Go(func() {
		if a := n.run("DEL", "", attach("pod2", "")...); a.exit != 0 || a.took > 8*time.Second+slack {
			t.Errorf("del: exit %d %s in %v", a.exit, a.out, a.took)
		}
	})
	wg.Wait()
	if !queue.Beside(n.socket).Has(queue.Entry{ContainerID: "pod2", IfName: "eth0"}) {
		t.Error("deletion is not queued")
	}
	// What the dead plugins asked for is not carried out behind their back.
	if err := agent.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "drained queue", func() bool {
		l, _ := queue.Beside(n.socket).List()
		return len(l) == 0
	})
	if a := n.run("ADD", "", attach("pod1", ns)...); a.exit != 0 {
		t.Errorf("add after the hang: %s (the first one must have left nothing)", a.out)
	}
}

func TestPluginEndsThoughStdinDoesNot(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, op := range []string{"STATUS", "VERSION"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := n.command(op, "")
		cmd.Stdin = r
		a := execute(t, cmd)
		_ = errors.Join(r.Close(), w.Close())
		if a.took > time.Second+slack || (op == "VERSION") != (a.exit == 0) {
			t.Errorf("%s: exit %d %s after %v", op, a.exit, a.out, a.took)
		}
	}
}

func TestVersionEchoesWhatItIsAskedWith(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for stdin, want := range map[string]string{`{"cniVersion":"0.4.0"}`: "0.4.0", "": "1.1.0", `{"cniVersion":"7.0.0"}`: "1.1.0", "rubbish": "1.1.0"} {
		a := execute(t, n.command("VERSION", stdin))
		var v struct{ CNIVersion string }
		if err := json.Unmarshal([]byte(a.out), &v); err != nil || v.CNIVersion != want || a.exit != 0 {
			t.Errorf("%q: got exit %d %s, want %s", stdin, a.exit, a.out, want)
		}
	}
	// A person who runs it is told what it is.
	cmd := exec.Command(filepath.Join(pluginDir, "netctl-cni"))
	cmd.Env = []string{"PATH=/bin"}
	if a := execute(t, cmd); a.exit != 0 || a.out != "" || !strings.Contains(a.stderr, "CNI plugin") {
		t.Errorf("by hand: exit %d %q %q", a.exit, a.out, a.stderr)
	}
}

func TestStopDuringOperations(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	_, stop := n.start(true)
	begun := make(chan struct{}, 2)
	wait := func(ctx context.Context) error { begun <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	n.agent.onAdd = func(ctx context.Context, _ cni.Attachment) error { return wait(ctx) }
	n.agent.onDel = func(ctx context.Context, _ cni.ID) error { return wait(ctx) }
	var wg sync.WaitGroup
	wg.Go(func() {
		if a := n.run("ADD", "", attach("pod1", ns)...); a.code() != wire.CodeTryAgain {
			t.Errorf("add: %s", a.out)
		}
	})
	wg.Go(func() {
		if a := n.run("DEL", "", attach("pod2", "")...); a.exit != 0 {
			t.Errorf("del: %s", a.out)
		}
	})
	<-begun
	<-begun
	stop()
	wg.Wait()
	if !queue.Beside(n.socket).Has(queue.Entry{ContainerID: "pod2", IfName: "eth0"}) {
		t.Error("interrupted deletion is not queued")
	}
	if _, err := os.Stat(n.socket); err == nil {
		t.Error("socket is left behind")
	}
}

func TestSuccessorTakesTheSocketOver(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	_, stopOld := n.start(true)
	n.start(true)
	stopOld()
	if a := n.status(0); a.exit != 0 {
		t.Errorf("after the old one stopped: %s", a.out)
	}
	if _, err := os.Stat(n.socket); err != nil {
		t.Errorf("the old agent removed its successor's socket: %v", err)
	}
}

// TestRandomRestarts runs additions and deletions while the server comes and
// goes. Whatever each was answered, the end is empty.
func TestRandomRestarts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	stopAll, restarts := make(chan struct{}), sync.WaitGroup{}
	restarts.Go(func() {
		for i := 0; ; i++ {
			_, stop := n.start(true)
			select {
			case <-stopAll:
				stop()
				return
			case <-time.After(time.Duration(10+i*7%40) * time.Millisecond):
			}
			stop()
		}
	})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			id := fmt.Sprint("pod", i)
			if a := n.run("ADD", "", attach(id, ns)...); a.exit != 0 && a.code() != wire.CodeTryAgain && a.code() != wire.CodeUnavailable {
				t.Errorf("add: %s", a.out)
			}
			if a := n.run("DEL", "", attach(id, "")...); a.exit != 0 {
				t.Errorf("del: %s", a.out)
			}
		})
	}
	wg.Wait()
	close(stopAll)
	restarts.Wait()
	n.start(true)
	if n.agent.len() != 0 {
		t.Errorf("%d ports left", n.agent.len())
	}
}

func TestFloodOfConnections(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	var conns []io.Closer
	for range 200 { // silent ones, which must not keep others out
		conns = append(conns, n.dial())
	}
	if a := n.status(0); a.exit != 0 {
		t.Errorf("status among silent connections: %s", a.out)
	}
	for _, c := range conns {
		_ = c.Close()
	}
}
