// Package queue keeps deletions on disk while nobody can carry them out.
//
// A container runtime must be able to delete a pod while the agent is down,
// and it must not be told "gone" for something that then stays. So the plugin
// notes the deletion here and the agent carries it out when it is back.
//
// A queue is a directory of empty files; the file's name is the whole record:
//
//	<dir>/<container ID>,<interface>     mode 0600, fsynced, and the directory too
//	<dir>/.lock                          flock while adding, so the bound holds
//	<dir>/.lost                          one byte per deletion that found it full
//
// Nothing has to be parsed, a torn write cannot exist, and the same deletion
// noted twice is one file. The directory is beside the agent's socket, under
// /run: a reboot clears it together with the pods it speaks of.
//
// Invariant for the reader: carry out the deletion and Remove its record
// without letting an addition of the same container in between.
package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

// Max is how many deletions a queue holds. A node runs some 110 pods, so 256
// is twice every pod of the node; beyond it something else is wrong, and the
// agent's own garbage collection finds what was not noted.
const Max = 256

const (
	lockName  = ".lock"
	lostName  = ".lost"
	lockRetry = 2 * time.Millisecond // between two tries for the lock
)

// ErrFull reports that Max deletions are waiting already.
var ErrFull = errors.New("deletion queue is full")

// Entry is one deletion.
type Entry struct {
	ContainerID string
	IfName      string
}

// Queue is a directory of deletions. It holds no open file; any number of
// processes may use one directory.
type Queue struct {
	dir string // immutable
}

// Beside returns the queue that belongs to the agent of that socket.
func Beside(socket string) *Queue { return &Queue{dir: socket + ".queue"} }

// Dir is where the queue lives.
func (q *Queue) Dir() string { return q.dir }

// Push notes a deletion durably. Noting it again changes nothing. A full queue
// is ErrFull and is counted for TakeLost. It waits for the lock until the
// deadline.
func (q *Queue) Push(e Entry, deadline time.Time) error {
	name, err := e.file()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return fmt.Errorf("create deletion queue: %w", err)
	}
	unlock, err := q.lock(deadline)
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(q.dir, name)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	entries, err := q.List()
	if err != nil {
		return err
	}
	if len(entries) >= Max {
		return errors.Join(fmt.Errorf("%w: %d deletions wait in %s", ErrFull, Max, q.dir), q.countLost())
	}
	if err := create(path); err != nil {
		return err
	}
	return syncDir(q.dir)
}

// Has reports whether the deletion is waiting.
func (q *Queue) Has(e Entry) bool {
	name, err := e.file()
	if err != nil {
		return false
	}
	_, err = os.Lstat(filepath.Join(q.dir, name))
	return err == nil
}

// List returns the waiting deletions, sorted by name. Files that are no
// records are passed over. A queue that was never used is empty.
func (q *Queue) List() ([]Entry, error) {
	files, err := os.ReadDir(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read deletion queue: %w", err)
	}
	var out []Entry
	for _, f := range files {
		if e, ok := parse(f.Name()); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// Remove forgets a deletion that was carried out. An absent one is no error.
func (q *Queue) Remove(e Entry) error {
	name, err := e.file()
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(q.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove queued deletion: %w", err)
	}
	return nil
}

// TakeLost returns how many deletions found the queue full since the last
// call.
func (q *Queue) TakeLost() (int64, error) {
	path := filepath.Join(q.dir, lostName)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read deletion queue: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return 0, fmt.Errorf("reset deletion queue: %w", err)
	}
	return info.Size(), nil
}

func (e Entry) file() (string, error) {
	if !wire.ValidContainerID(e.ContainerID) || !wire.ValidIfName(e.IfName) {
		return "", fmt.Errorf("queue deletion of %.80q %.80q: invalid name", e.ContainerID, e.IfName)
	}
	return e.ContainerID + "," + e.IfName, nil
}

func parse(name string) (Entry, bool) {
	id, ifName, ok := strings.Cut(name, ",") // a container ID has no comma
	if !ok || !wire.ValidContainerID(id) || !wire.ValidIfName(ifName) {
		return Entry{}, false
	}
	return Entry{ContainerID: id, IfName: ifName}, true
}

// lock takes the queue's file lock. The kernel gives it back when a holder is
// killed; the lock file itself stays.
func (q *Queue) lock(deadline time.Time) (func(), error) {
	f, err := os.OpenFile(filepath.Join(q.dir, lockName), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of deletion queue: %w", err)
	}
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock deletion queue: %w", err)
		}
		if !time.Now().Before(deadline) {
			_ = f.Close()
			return nil, fmt.Errorf("lock deletion queue %s: %w", q.dir, os.ErrDeadlineExceeded)
		}
		<-tick.C
	}
}

func (q *Queue) countLost() error {
	f, err := os.OpenFile(filepath.Join(q.dir, lostName), os.O_CREATE|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("count lost deletion: %w", err)
	}
	_, err = f.Write([]byte{'.'})
	return errors.Join(err, f.Close())
}

func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("queue deletion: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("queue deletion: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync deletion queue: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync deletion queue: %w", err)
	}
	return nil
}
