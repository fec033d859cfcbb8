package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace. Holding one keeps the namespace
// alive: close it when it is no longer needed. It is safe for concurrent use
// until Close.
type Namespace struct {
	file *os.File
	dev  uint64 // immutable after open
	ino  uint64
}

// OpenNamespace opens the network namespace at path, such as
// /run/netns/NAME or /proc/PID/ns/net. The path may come from a stranger: it
// is looked at before it is opened, so a pipe or a device does no harm. The
// error wraps fs.ErrNotExist when there is nothing and ErrNotNamespace when
// there is something else.
func OpenNamespace(path string) (*Namespace, error) {
	look, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open network namespace", Path: path, Err: err}
	}
	defer unix.Close(look)
	if err := checkNSFS(look); err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(look), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open network namespace", Path: path, Err: err}
	}
	ns, err := NamespaceFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return ns, nil
}

// NamespaceFromFD makes a Namespace of a descriptor, as received over a unix
// socket, after checking that it is a network namespace. It owns fd from then
// on; on an error the caller still does.
func NamespaceFromFD(fd int) (*Namespace, error) {
	if err := checkNSFS(fd); err != nil {
		return nil, err
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return nil, fmt.Errorf("ask for the namespace's type: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("namespace of type %#x: %w", kind, ErrNotNamespace)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat namespace: %w", err)
	}
	unix.CloseOnExec(fd)
	return &Namespace{file: os.NewFile(uintptr(fd), "netns"), dev: st.Dev, ino: st.Ino}, nil
}

// CurrentNamespace opens the calling thread's network namespace.
func CurrentNamespace() (*Namespace, error) {
	fd, err := openThreadNS()
	if err != nil {
		return nil, err
	}
	ns, err := NamespaceFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return ns, nil
}

func openThreadNS() (int, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open own network namespace: %w", err)
	}
	return fd, nil
}

func checkNSFS(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if int64(fs.Type) != unix.NSFS_MAGIC { //nolint:unconvert // not 64 bits wide everywhere
		return ErrNotNamespace
	}
	return nil
}

// Inode identifies the namespace on this machine for as long as it lives;
// afterwards the kernel may use the numbers again.
func (n *Namespace) Inode() (dev, ino uint64) { return n.dev, n.ino }

// FD returns the descriptor, for passing it on. It is borrowed: valid until
// Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Close releases the namespace; the namespace itself lives on while somebody
// else holds it.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs fn inside the namespace, on a thread of its own, and returns fn's
// error. Goroutines that fn starts do not run inside. A nil Namespace is the
// caller's own, where fn simply runs.
//
// If the thread cannot come back it is thrown away, so no other goroutine ever
// finds itself in a foreign namespace.
func (n *Namespace) Do(fn func() error) error {
	if n == nil {
		return fn()
	}
	return onThread(func() error {
		err := unix.Setns(n.FD(), unix.CLONE_NEWNET)
		runtime.KeepAlive(n)
		if err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a locked thread other than the caller's and puts that
// thread back into its own network namespace afterwards. Its own is not the
// caller's when the caller is inside a Do.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		result := errors.New("function left its thread")
		defer func() { done <- result }() // also after runtime.Goexit
		runtime.LockOSThread()
		home, err := openThreadNS()
		if err != nil {
			runtime.UnlockOSThread()
			result = err
			return
		}
		defer func() {
			// A goroutine that ends while locked takes its thread along,
			// which is what a thread that cannot come back deserves.
			if unix.Setns(home, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			unix.Close(home)
		}()
		result = fn()
	}()
	return <-done
}

// StartIn starts a command inside the namespace. As everywhere, the caller
// waits for it. Do not set Pdeathsig: it follows the thread, not the process.
func StartIn(ns *Namespace, cmd *exec.Cmd) error {
	return ns.Do(cmd.Start)
}

// ProcessesIn returns the processes whose network namespace this is, without
// the calling one. Processes that end or may not be looked at are left out.
// A nil Namespace is an error: the list is there to end processes by.
func ProcessesIn(ns *Namespace) ([]int, error) {
	if ns == nil {
		return nil, errors.New("list processes: no namespace given")
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	self := os.Getpid()
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name()+"/ns/net", &st) == nil && st.Dev == ns.dev && st.Ino == ns.ino {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
