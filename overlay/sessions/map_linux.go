package sessions

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/mapfile"
)

// This is the one file of the package that knows of the operating system.

// file is a mapped file.
type file struct {
	f      *os.File
	memory *os.File // another opening of the same, for others; nil: f has a name
	data   []byte
	words  []atomic.Uint64
	ready  int // bytes from the start that have memory behind them
	kept   int // bytes from the start that we tried to keep out of swap
}

// mapFile maps the first size bytes of f, shared and writable. It owns f.
func mapFile(f *os.File, size int) (*file, error) {
	b, words, err := mapfile.Map(f, size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_ = unix.Madvise(b, unix.MADV_DONTDUMP) // keys stay out of core dumps; a kernel without it has none of ours anyway
	return &file{f: f, data: b, words: words}, nil
}

// keep holds the part of the mapping that has memory out of swap, where the
// process may. The whole would be more than most processes may lock.
func (m *file) keep() error {
	b := m.data[m.kept:m.ready]
	if len(b) == 0 {
		return nil
	}
	m.kept = m.ready
	if _, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MLOCK_ONFAULT); errno != 0 {
		return os.NewSyscallError("mlock2", errno)
	}
	return nil
}

func (m *file) close() error {
	err := errors.Join(mapfile.Unmap(m.data), m.f.Close())
	if m.memory != nil {
		err = errors.Join(err, m.memory.Close())
	}
	return err
}

// reserve sees to it that the first n slots have memory behind them: a sparse
// mapping that meets a full tmpfs would end in SIGBUS.
func (s *Store) reserve(n int) error {
	const step = 64 << 10
	need := sizeWords(n) * 8
	if s.file == nil || need <= s.file.ready {
		return nil
	}
	need = min((need+step-1)/step*step, len(s.file.data))
	if err := allocate(s.file.f, need); err != nil {
		return err
	}
	s.file.ready = need
	s.keep()
	return nil
}

// keep calls file.keep until it fails, which is said once. It needs mu, or an
// owner that is alone.
func (s *Store) keep() {
	if s.swaps {
		return
	}
	if err := s.file.keep(); err != nil {
		s.swaps = true
		if s.warn != nil {
			s.warn(fmt.Errorf("session keys may be swapped out: %w", err))
		}
	}
}

// allocate gives the first n bytes of f memory.
func allocate(f *os.File, n int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) {
		for {
			ferr = syscall.Fallocate(int(fd), 0, 0, int64(n))
			if !errors.Is(ferr, syscall.EINTR) {
				return
			}
		}
	}); err != nil {
		return err
	}
	return os.NewSyscallError("fallocate", ferr)
}

// memoryFile makes a file that is nothing but memory, and this user's alone.
func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("netctl-sessions", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "netctl-sessions")
	if err := f.Chmod(0o600); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// reopen opens a file once more, with locks of its own.
func reopen(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var again *os.File
	var oerr error
	if err := raw.Control(func(fd uintptr) {
		again, oerr = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
	}); err != nil {
		return nil, err
	}
	return again, oerr
}

// duplicate copies a descriptor.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var copied int
	var derr error
	if err := raw.Control(func(fd uintptr) { copied, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("fcntl", derr)
	}
	return os.NewFile(uintptr(copied), f.Name()), nil
}

// ours reports whether a file is this user's alone.
func ours(st os.FileInfo) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid() && st.Mode().IsRegular() && st.Mode().Perm()&0o077 == 0
}

// Now returns the nanoseconds since boot, time asleep included.
func Now() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return ts.Nano(), nil
}
