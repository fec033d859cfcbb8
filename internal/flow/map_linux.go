package flow

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

// slotsOf shows words as slots.
func slotsOf(w []atomic.Uint64) []slot {
	return unsafe.Slice((*slot)(unsafe.Pointer(unsafe.SliceData(w))), len(w)/slotWords) // a slot is slotWords of them
}

// mapFile maps the first size bytes of f, shared and writable.
func mapFile(f *os.File, size int) ([]byte, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var b []byte
	var merr error
	if err := raw.Control(func(fd uintptr) {
		b, merr = syscall.Mmap(int(fd), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	}); err != nil {
		return nil, err
	}
	if merr != nil {
		return nil, os.NewSyscallError("mmap", merr)
	}
	return b, nil
}

func unmap(b []byte) error { return os.NewSyscallError("munmap", syscall.Munmap(b)) }

// lockFile takes an exclusive or a shared lock on the open file without
// waiting, or turns one into the other. It returns ErrInUse when another
// process is in the way.
func lockFile(f *os.File, exclusive bool) error {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	if err := raw.Control(func(fd uintptr) {
		for {
			lerr = syscall.Flock(int(fd), how|syscall.LOCK_NB)
			if !errors.Is(lerr, syscall.EINTR) {
				return
			}
		}
	}); err != nil {
		return err
	}
	if errors.Is(lerr, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return os.NewSyscallError("flock", lerr)
}

// unlockFile gives the lock up at once: closing the file would leave it to a
// child that is between fork and exec and has a copy of the descriptor.
func unlockFile(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var uerr error
	if err := raw.Control(func(fd uintptr) { uerr = syscall.Flock(int(fd), syscall.LOCK_UN) }); err != nil {
		return err
	}
	return os.NewSyscallError("flock", uerr)
}

// freeSpace returns the bytes that the file system of f can still take. A
// sparse mapping that meets a full tmpfs ends in SIGBUS, so Open asks first.
func freeSpace(f *os.File) (uint64, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st syscall.Statfs_t
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = syscall.Fstatfs(int(fd), &st) }); err != nil {
		return 0, err
	}
	if serr != nil {
		return 0, os.NewSyscallError("fstatfs", serr)
	}
	if st.Blocks == 0 {
		return 1 << 62, nil // a file system without a bound, such as an unlimited tmpfs
	}
	return st.Bavail * uint64(st.Bsize), nil // a size is not negative
}
