package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/lab"
	"github.com/netctl/netctl/test/bench/rivals"
)

// claim waits until no other run is under way: what is measured is the machine, and
// the names are the same. Then it removes what a run has left that was killed.
func (b *bench) claim(ctx context.Context) (unlock func() error, err error) {
	f, err := os.OpenFile(root+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for said := false; ; said = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if !said {
			fmt.Fprintln(os.Stderr, "bench: waiting for another run")
		}
		if wait(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
	if err := b.clean(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, os.MkdirAll(b.dir, 0o755)
}

// clean removes everything that bears the suite's name. What is gone already is fine.
func (b *bench) clean() error {
	var errs []error
	labs, err := filepath.Glob(filepath.Join(b.dir, "*", "cluster"))
	if err != nil {
		return err
	}
	for _, path := range labs {
		errs = append(errs, b.removeLab(filepath.Base(filepath.Dir(path))))
	}
	entries, err := os.ReadDir(kernel.RuntimeDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), rivals.Prefix) {
			errs = append(errs, removeNamespace(filepath.Join(kernel.RuntimeDir, e.Name())))
		}
	}
	return errors.Join(append(errs, rivals.CleanWireGuard(), os.RemoveAll(b.dir))...)
}

func (b *bench) removeLab(name string) error {
	l, err := lab.New(lab.Config{Name: name, Nodes: 1, Families: lab.IPv4}, lab.Options{Root: b.dir, Exe: b.netctl, Out: io.Discard})
	if err != nil {
		return err
	}
	return errors.Join(l.Down(), l.Close())
}

// removeNamespace deletes a namespace and ends what runs in it.
func removeNamespace(path string) error {
	if ns, err := kernel.OpenNamespace(path); err == nil {
		pids, err := kernel.ProcessesIn(ns)
		if err := errors.Join(err, ns.Close()); err != nil {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
	return kernel.DeleteNamespace(path)
}
