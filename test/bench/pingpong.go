package main

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

const (
	pingPort    = 5202
	pingSize    = 64
	pingTimeout = 5 * time.Second
)

// exchanges sends n requests of 64 bytes over one TCP connection, each after
// the reply to the one before, and returns how long each took. Both ends are
// threads in blocking system calls, so that no scheduler but the kernel's is in
// the figures.
func (p *path) exchanges(ctx context.Context, n int) ([]time.Duration, error) {
	listener, err := socketIn(p.to, func(fd int) error {
		addr := &syscall.SockaddrInet4{Port: pingPort, Addr: p.addr.As4()}
		return errors.Join(
			syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
			syscall.Bind(fd, addr), syscall.Listen(fd, 1))
	})
	if err != nil {
		return nil, err
	}
	defer syscall.Close(listener)
	done := make(chan error, 1)
	go func() { done <- answer(listener, n) }()
	client, err := socketIn(p.from, func(fd int) error {
		return syscall.Connect(fd, &syscall.SockaddrInet4{Port: pingPort, Addr: p.addr.As4()})
	})
	if err != nil {
		_ = syscall.Shutdown(listener, syscall.SHUT_RDWR)
		return nil, errors.Join(err, <-done)
	}
	all, err := ask(ctx, client, n)
	_ = syscall.Close(client)
	return all, errors.Join(err, <-done)
}

// socketIn makes a TCP socket inside a namespace and prepares it there.
func socketIn(ns *kernel.Namespace, prepare func(fd int) error) (int, error) {
	fd := -1
	err := ns.Do(func() error {
		var err error
		if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := errors.Join(timeouts(fd), prepare(fd)); err != nil {
			_ = syscall.Close(fd)
			return err
		}
		return nil
	})
	return fd, err
}

// timeouts keep a lost packet from hanging the benchmark.
func timeouts(fd int) error {
	limit := syscall.NsecToTimeval(int64(pingTimeout))
	return errors.Join(
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit))
}

func answer(listener, n int) error {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	fd, _, err := syscall.Accept(listener)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	defer syscall.Close(fd)
	if err := timeouts(fd); err != nil {
		return err
	}
	buf := make([]byte, pingSize)
	for range n {
		if err := transfer(syscall.Read, fd, buf); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		if err := transfer(syscall.Write, fd, buf); err != nil {
			return fmt.Errorf("write a reply: %w", err)
		}
	}
	return nil
}

func ask(ctx context.Context, fd, n int) ([]time.Duration, error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	buf := make([]byte, pingSize)
	all := make([]time.Duration, 0, n)
	for range n {
		if err := ctx.Err(); err != nil {
			return all, err
		}
		start := time.Now()
		if err := transfer(syscall.Write, fd, buf); err != nil {
			return all, fmt.Errorf("write a request: %w", err)
		}
		if err := transfer(syscall.Read, fd, buf); err != nil {
			return all, fmt.Errorf("read a reply: %w", err)
		}
		all = append(all, time.Since(start))
	}
	return all, nil
}

// transfer reads or writes the whole buffer.
func transfer(call func(int, []byte) (int, error), fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := call(fd, buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("connection ended")
		}
		buf = buf[n:]
	}
	return nil
}
