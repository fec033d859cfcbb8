package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// The files of a pool's directory.
const (
	snapshotName = "snapshot"
	journalName  = "journal"
	lockName     = "lock"
	damagedName  = "snapshot.damaged"
)

// disk is the steps that a pool takes on files, each of which a crash may cut
// short. There is one for directories and one in tests that crashes.
type disk interface {
	// read returns a file's content; nothing when it is absent.
	read(name string) ([]byte, error)
	// append adds to the end of the journal.
	append(data []byte) error
	// truncate cuts the journal.
	truncate(size int64) error
	// writeTemp writes name.tmp and forces it to the disk.
	writeTemp(name string, data []byte) error
	// rename moves a file over another and forces the directory to the disk.
	rename(from, to string) error
	close() error
}

// directory is the disk of a real pool.
type directory struct {
	path    string
	lock    *os.File
	journal *os.File
}

// openDirectory makes the directory when needed and locks it, so that no two
// processes hand out addresses from one record.
func openDirectory(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := tryLock(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), lock.Close())
	}
	journal, err := os.OpenFile(filepath.Join(path, journalName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &directory{path: path, lock: lock, journal: journal}, nil
}

// tryLock takes an exclusive lock that ends with the file, also when the
// process is killed.
func tryLock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = raw.Control(func(fd uintptr) {
		lockErr = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB)
	})
	if errors.Is(lockErr, syscall.EWOULDBLOCK) {
		lockErr = ErrLocked
	}
	return errors.Join(err, lockErr)
}

func (d *directory) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(d.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (d *directory) append(data []byte) error {
	_, err := d.journal.Write(data)
	return err
}

func (d *directory) truncate(size int64) error { return d.journal.Truncate(size) }

func (d *directory) writeTemp(name string, data []byte) (err error) {
	f, err := os.OpenFile(filepath.Join(d.path, name+".tmp"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func (d *directory) rename(from, to string) error {
	if err := os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to)); err != nil {
		return err
	}
	dir, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *directory) close() error { return errors.Join(d.journal.Close(), d.lock.Close()) }
