package kernel_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
)

func inode(tb testing.TB, ns *kernel.Namespace) [2]uint64 {
	tb.Helper()
	dev, ino := ns.Inode()
	return [2]uint64{dev, ino}
}

func current(tb testing.TB) [2]uint64 {
	tb.Helper()
	ns, err := kernel.CurrentNamespace()
	if err != nil {
		tb.Error(err)
		return [2]uint64{}
	}
	defer ns.Close()
	return inode(tb, ns)
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	before := current(t)
	fail := errors.New("from inside")
	var inside [2]uint64
	err := ns.Do(func() error {
		inside = current(t)
		return fail
	})
	if !errors.Is(err, fail) {
		t.Errorf("got error %v, want the function's", err)
	}
	if inside != inode(t, ns) || inside == before {
		t.Errorf("function ran in %v, want %v", inside, inode(t, ns))
	}
	if got := current(t); got != before {
		t.Errorf("afterwards in %v, want %v", got, before)
	}
	var nothing *kernel.Namespace
	if err := nothing.Do(func() error { return fail }); !errors.Is(err, fail) {
		t.Errorf("nil namespace: got %v", err)
	}
}

func TestDoLeavesNoThreadBehindInside(t *testing.T) {
	t.Parallel()
	spaces := []*kernel.Namespace{newNS(t), newNS(t), newNS(t)}
	before := current(t)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			ns := spaces[i%len(spaces)]
			_ = ns.Do(func() error {
				if got := current(t); got != inode(t, ns) {
					t.Errorf("in %v, want %v", got, inode(t, ns))
				}
				if i%10 == 0 {
					runtime.Goexit() // must neither hang nor leak the thread
				}
				return nil
			})
			if got := current(t); got != before {
				t.Errorf("goroutine ended up in %v", got)
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("threads: %v, %v", tasks, err)
	}
	for _, task := range tasks {
		st, err := os.Stat(task)
		if err != nil {
			continue // the thread ended
		}
		id := st.Sys().(*syscall.Stat_t)
		for _, ns := range spaces {
			if inode(t, ns) == [2]uint64{id.Dev, id.Ino} {
				t.Errorf("thread %s stayed inside", task)
			}
		}
	}
}

// A Do inside a Do must not leave the inner thread in the outer namespace.
func TestDoNests(t *testing.T) {
	t.Parallel()
	outer, inner := newNS(t), newNS(t)
	before := current(t)
	for range 30 {
		err := outer.Do(func() error {
			err := inner.Do(func() error {
				if got := current(t); got != inode(t, inner) {
					t.Errorf("inner function in %v", got)
				}
				return nil
			})
			if got := current(t); got != inode(t, outer) {
				t.Errorf("outer function came back to %v", got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if got := current(t); got != before {
					t.Errorf("goroutine in %v, want %v", got, before)
				}
			})
		}
		wg.Wait()
	}
}

func TestCreateNamespaceIsAllOrNothing(t *testing.T) {
	t.Parallel()
	_, path := newNamedNS(t)
	if _, err := kernel.CreateNamespace(path); !errors.Is(err, kernel.ErrExists) {
		t.Errorf("second create: got %v, want ErrExists", err)
	}
	dir := t.TempDir()
	leftover := filepath.Join(dir, "leftover")
	if err := os.WriteFile(leftover, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	ns, err := kernel.CreateNamespace(leftover)
	if err != nil {
		t.Fatalf("over the remains of a killed one: %v", err)
	}
	ns.Close()
	for range 2 {
		if err := kernel.DeleteNamespace(leftover); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := os.Stat(leftover); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("file after delete: %v", err)
	}
	for name, content := range map[string]string{"file": "precious"} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := kernel.CreateNamespace(p); !errors.Is(err, kernel.ErrExists) {
			t.Errorf("create over a file: got %v", err)
		}
		if err := kernel.DeleteNamespace(p); !errors.Is(err, kernel.ErrNotNamespace) {
			t.Errorf("delete of a file: got %v", err)
		}
		if b, err := os.ReadFile(p); string(b) != content {
			t.Errorf("file was disturbed: %q, %v", b, err)
		}
	}
	if err := kernel.DeleteNamespace(filepath.Join(dir, "no", "such", "dir")); err != nil {
		t.Errorf("delete of the absent: %v", err)
	}
}

func TestCreateNamespaceSideBySide(t *testing.T) {
	t.Parallel()
	if err := kernel.HaveNamespaces(); err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	path := filepath.Join(t.TempDir(), "deep", "ns")
	t.Cleanup(func() {
		if err := kernel.DeleteNamespace(path); err != nil {
			t.Error(err)
		}
	})
	var mu sync.Mutex
	made := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ns, err := kernel.CreateNamespace(path)
			if errors.Is(err, kernel.ErrExists) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			ns.Close()
			mu.Lock()
			defer mu.Unlock()
			made++
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d of 8 made the namespace, want 1", made)
	}
}

func TestOpenNamespaceRefusesOtherThings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		want       error
	}{
		{"missing", filepath.Join(dir, "none"), fs.ErrNotExist},
		{"pipe", fifo, kernel.ErrNotNamespace},
		{"file", file, kernel.ErrNotNamespace},
		{"directory", dir, kernel.ErrNotNamespace},
		{"device", "/dev/zero", kernel.ErrNotNamespace},
		{"other kind of namespace", "/proc/self/ns/mnt", kernel.ErrNotNamespace},
		{"empty", "", fs.ErrNotExist},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if ns, err := kernel.OpenNamespace(tt.path); !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", ns, err, tt.want)
			}
		})
	}
	ns, path := newNamedNS(t)
	again, err := kernel.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if inode(t, ns) != inode(t, again) {
		t.Errorf("opened %v, want %v", inode(t, again), inode(t, ns))
	}
}

func TestStartInAndProcessesIn(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	if pids, err := kernel.ProcessesIn(ns); err != nil || len(pids) != 0 {
		t.Errorf("empty namespace has processes %v, %v", pids, err)
	}
	cmd := exec.Command("sleep", "60")
	if err := kernel.StartIn(ns, cmd); err != nil {
		t.Fatal(err)
	}
	pids, err := kernel.ProcessesIn(ns)
	if err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("got processes %v, %v, want %d", pids, err, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if pids, err := kernel.ProcessesIn(ns); err != nil || len(pids) != 0 {
		t.Errorf("after the end: %v, %v", pids, err)
	}
	if _, err := kernel.ProcessesIn(nil); err == nil {
		t.Error("a list of processes to end without a namespace")
	}
}

func TestShareMountIsIdempotentAndUndone(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	sharedLines := func() int {
		info, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(info)) {
			if strings.Contains(line, " "+dir+" ") && strings.Contains(line, " shared:") {
				n++
			}
		}
		return n
	}
	for range 3 {
		if err := kernel.ShareMount(dir); err != nil {
			t.Skipf("mounting is not possible here: %v", err)
		}
	}
	if n := sharedLines(); n != 1 {
		t.Errorf("%d shared mounts, want 1", n)
	}
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Error(err)
	}
	if n := sharedLines(); n != 0 {
		t.Errorf("%d mounts stayed", n)
	}
}

// Below RuntimeDir a namespace must reach containers that received the
// directory, also when nothing there is a shared mount yet. The test runs
// itself again where /run is its own.
func TestCreateNamespaceInRuntimeDir(t *testing.T) {
	t.Parallel()
	if err := kernel.HaveNamespaces(); err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	if os.Getenv("KERNEL_TEST_RUN") == "" {
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			t.Skip("needs unshare of util-linux")
		}
		cmd := exec.Command(unshare, "--mount", "--propagation", "private", "sh", "-c",
			`mount -t tmpfs tmpfs /run && exec "$0" -test.run='^TestCreateNamespaceInRuntimeDir$' -test.v`, os.Args[0])
		cmd.Env = append(os.Environ(), "KERNEL_TEST_RUN=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	// The receiver copies the mounts before the namespace is made and looks
	// for it afterwards.
	first, err := kernel.CreateNamespace(kernel.RuntimeDir + "/first")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	receiver := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c",
		`echo ready && read go && stat -f -c %t /run/netns/first /run/netns/second`)
	stdin, err := receiver.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := receiver.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := receiver.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, ready); err != nil {
		t.Fatal(err)
	}
	second, err := kernel.CreateNamespace(kernel.RuntimeDir + "/second")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(stdout)
	if err := errors.Join(err, receiver.Wait()); err != nil {
		t.Fatal(err)
	}
	if want := "6e736673\n6e736673\n"; string(got) != want { // NSFS_MAGIC
		t.Errorf("the receiver sees file systems %q, want %q", got, want)
	}
	for _, name := range []string{"first", "second"} {
		if err := kernel.DeleteNamespace(kernel.RuntimeDir + "/" + name); err != nil {
			t.Error(err)
		}
	}
}
