package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RuntimeDir is where named network namespaces live by convention ("ip netns",
// container runtimes).
const RuntimeDir = "/run/netns"

// CreateNamespace makes a network namespace and binds it to path, as "ip netns
// add" does, and opens it. It is all or nothing: a failure leaves neither file
// nor mount, and what a killed predecessor left (a plain empty file) is taken
// over. The directory is made when it is missing; below RuntimeDir it is made
// a shared mount, so that the namespace appears in containers that mount the
// directory with propagation. The error wraps ErrExists when path is a
// namespace already. The new namespace has nothing but a loopback that is down.
func CreateNamespace(path string) (*Namespace, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create namespace: %w", err)
	}
	if dir == RuntimeDir || dir == "/var"+RuntimeDir {
		if err := ShareMount(dir); err != nil {
			return nil, err
		}
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := claimMountPoint(path); err != nil {
		return nil, err
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind namespace to %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	ns, err := OpenNamespace(path)
	if err != nil {
		return nil, errors.Join(err, deleteNamespace(path))
	}
	return ns, nil
}

// claimMountPoint makes the empty file that a namespace is mounted on, or
// takes over one that has no mount. The caller holds the directory's lock.
func claimMountPoint(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create namespace: %w", err)
	}
	if isLeftover(path) {
		return nil
	}
	return fmt.Errorf("create namespace %s: %w", path, ErrExists)
}

// isLeftover reports whether path is a plain empty file without a namespace
// mounted on it: the remains of a killed create or delete.
func isLeftover(path string) bool {
	var st unix.Stat_t
	var sfs unix.Statfs_t
	if unix.Lstat(path, &st) != nil || unix.Statfs(path, &sfs) != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 && int64(sfs.Type) != unix.NSFS_MAGIC //nolint:unconvert // not 64 bits wide everywhere
}

// DeleteNamespace unmounts and removes a named namespace. It succeeds when
// there is none, and refuses, touching nothing, when path is anything but a
// namespace or its remains. The namespace itself ends when the last process,
// descriptor and mount of it do.
func DeleteNamespace(path string) error {
	unlock, err := lockDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return deleteNamespace(path)
}

// deleteNamespace is DeleteNamespace with the directory's lock held.
func deleteNamespace(path string) error {
	for {
		var sfs unix.Statfs_t
		err := unix.Statfs(path, &sfs)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return &os.PathError{Op: "delete namespace", Path: path, Err: err}
		}
		if int64(sfs.Type) != unix.NSFS_MAGIC { //nolint:unconvert // not 64 bits wide everywhere
			break
		}
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &os.PathError{Op: "unmount namespace", Path: path, Err: err}
		}
	}
	if !isLeftover(path) {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("delete namespace %s: %w", path, ErrNotNamespace)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete namespace: %w", err)
	}
	return nil
}

// lockDir serialises creators in one directory, processes included.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// ShareMount makes dir a shared mount point, binding it to itself when it is
// none, so that mounts made below it later also appear in mount namespaces
// that received a copy of it. It does nothing when dir is already on a shared
// mount of its own.
func ShareMount(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("share mount: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	// The kernel is asked, not /proc: a mount there may be hidden under another.
	share := func() error { return unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // no mount point
		if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return &os.PathError{Op: "bind", Path: dir, Err: err}
		}
		err = share()
	}
	if err != nil {
		return &os.PathError{Op: "make shared", Path: dir, Err: err}
	}
	return nil
}
