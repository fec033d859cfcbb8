package cni

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A socket goes from one server to the next without a moment in which a plugin is
// refused; the call under way is finished by the first.
func TestSocketIsHandedOver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d", "cni.sock")
	start := func(adopt int) (*Server, chan error, context.CancelFunc) {
		s, err := NewServer(Config{Socket: path, Backend: nopBackend{}, Logger: slog.New(slog.DiscardHandler), Adopt: adopt})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Listen(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		return s, done, cancel
	}
	first, done, cancel := start(0)
	defer cancel()
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		fd, err := first.Socket()
		if err != nil {
			t.Fatal(err)
		}
		open, err := net.Dial("unix", path) // a call that never says anything
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // accepted, probably
		quiet, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		first.Quiesce(quiet)
		stop()
		waiting, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("refused while nobody serves: %v", err)
		}
		cancel()
		if err := errors.Join(<-done, open.Close(), waiting.Close()); err != nil {
			t.Error(err)
		}
		if now, err := os.Lstat(path); err != nil || !os.SameFile(before, now) {
			t.Fatalf("the socket's file: %v", err)
		}
		first, done, cancel = start(fd)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last one leaves its socket: %v", err)
	}
}

// A socket that is not what plugins find at the path is of no use, whatever is there.
func TestOrphanedSocketIsNotAdopted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d", "cni.sock")
	server := func(adopt int) *Server {
		s, err := NewServer(Config{Socket: path, Backend: nopBackend{}, Logger: slog.New(slog.DiscardHandler), Adopt: adopt})
		if err == nil {
			err = s.Listen()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.listener.close(false) })
		return s
	}
	orphan, err := server(0).Socket()
	if err != nil {
		t.Fatal(err)
	}
	other := server(0) // at the same path
	if err := other.listener.Close(); err != nil {
		t.Fatal(err)
	}
	server(orphan)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody listens where plugins call: %v", err)
	}
	_ = conn.Close()
}

// The file of a socket that somebody keeps a copy of stays when the server ends.
func TestKeptSocketStays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d", "cni.sock")
	s, err := NewServer(Config{Socket: path, Backend: nopBackend{}, Logger: slog.New(slog.DiscardHandler), Stays: func() bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

type nopBackend struct{}

func (nopBackend) Add(context.Context, Attachment) (Result, error) { return Result{}, nil }
func (nopBackend) Del(context.Context, ID) error                   { return nil }
func (nopBackend) Check(context.Context, Attachment, Result) error { return nil }
func (nopBackend) GC(context.Context, []ID) error                  { return nil }
func (nopBackend) Status(context.Context) error                    { return nil }
