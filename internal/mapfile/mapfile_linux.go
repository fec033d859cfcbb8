package mapfile

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// This is the one file of the package that knows of pointers and of the
// operating system: it shows a mapping as atomic words.

// wordsOf shows a page-aligned mapping as words. It is valid until the mapping
// is undone.
func wordsOf(b []byte) []atomic.Uint64 {
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8) // page-aligned, len(b)/8 words long
}

// Records shows words as records, each an array of words. What is left over at
// the end is not shown.
func Records[T any](w []atomic.Uint64) []T {
	var zero T
	n := int(unsafe.Sizeof(zero)) / 8
	if n == 0 || unsafe.Sizeof(zero)%8 != 0 || unsafe.Alignof(zero) > 8 {
		panic("mapfile: a record is not made of words")
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(w))), len(w)/n) // as long as the words, aligned as they are
}

// control calls do with the file's descriptor.
func control(f *os.File, do func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := raw.Control(func(fd uintptr) { derr = do(fd) }); err != nil {
		return err
	}
	return derr
}

// Map maps the first size bytes of f, shared and writable, and shows them as words,
// which are valid until Unmap.
func Map(f *os.File, size int) ([]byte, []atomic.Uint64, error) {
	var b []byte
	err := control(f, func(fd uintptr) (err error) {
		b, err = syscall.Mmap(int(fd), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		return os.NewSyscallError("mmap", err)
	})
	if err != nil {
		return nil, nil, err
	}
	return b, wordsOf(b), nil
}

// Unmap undoes Map.
func Unmap(b []byte) error { return os.NewSyscallError("munmap", syscall.Munmap(b)) }

// LockFile takes an exclusive or a shared lock on the open file without
// waiting, or turns one into the other. It returns ErrInUse when another
// process is in the way.
func LockFile(f *os.File, exclusive bool) error {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	return control(f, func(fd uintptr) error {
		for {
			err := syscall.Flock(int(fd), how|syscall.LOCK_NB)
			switch {
			case errors.Is(err, syscall.EINTR):
			case errors.Is(err, syscall.EWOULDBLOCK):
				return ErrInUse
			default:
				return os.NewSyscallError("flock", err)
			}
		}
	})
}

// UnlockFile gives the lock up at once: closing the file would leave it to a
// child that is between fork and exec and has a copy of the descriptor.
func UnlockFile(f *os.File) error {
	return control(f, func(fd uintptr) error { return os.NewSyscallError("flock", syscall.Flock(int(fd), syscall.LOCK_UN)) })
}

// freeSpace returns the bytes that the file system of f can still take. A
// sparse mapping that meets a full tmpfs ends in SIGBUS, so Make asks first.
func freeSpace(f *os.File) (uint64, error) {
	st, err := statFS(f)
	if err != nil {
		return 0, err
	}
	if st.Blocks == 0 {
		return 1 << 62, nil // a file system without a bound, such as an unlimited tmpfs
	}
	return st.Bavail * uint64(st.Bsize), nil // a size is not negative
}

// The file systems whose files are memory (statfs(2)).
const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// OnMemory reports whether a file or directory that is open lies in memory, where
// nothing of it reaches a disk other than by swapping.
func OnMemory(f *os.File) (bool, error) {
	st, err := statFS(f)
	if err != nil {
		return false, err
	}
	magic := uint32(st.Type) // has 32 bits on every architecture
	return magic == tmpfsMagic || magic == ramfsMagic, nil
}

func statFS(f *os.File) (st syscall.Statfs_t, err error) {
	err = control(f, func(fd uintptr) error { return os.NewSyscallError("fstatfs", syscall.Fstatfs(int(fd), &st)) })
	return st, err
}

// Locks of the open file description (fcntl(2)): they end with the last process
// that has it, and the syscall package has no names for them.
const (
	getLock = 36 // F_OFD_GETLK
	setLock = 37 // F_OFD_SETLK
)

// takeSeat locks one byte, and reports false when another process has it.
func takeSeat(f *os.File, at int64) (bool, error) {
	lk := syscall.Flock_t{Type: syscall.F_WRLCK, Start: at, Len: 1}
	err := control(f, func(fd uintptr) error { return syscall.FcntlFlock(fd, setLock, &lk) })
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return false, nil
	}
	return err == nil, os.NewSyscallError("fcntl", err)
}

// seatFree reports whether no other process has locked the byte.
func seatFree(f *os.File, at int64) (bool, error) {
	lk := syscall.Flock_t{Type: syscall.F_WRLCK, Start: at, Len: 1}
	err := control(f, func(fd uintptr) error { return syscall.FcntlFlock(fd, getLock, &lk) })
	return err == nil && lk.Type == syscall.F_UNLCK, os.NewSyscallError("fcntl", err)
}
