package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

// guarded runs a Backend operation in a slot, safe from its panics.
func (s *Server) guarded(ctx context.Context, fn func() error) error {
	select {
	case s.operations <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for other operations: %w", ctx.Err())
	}
	defer func() { <-s.operations }()
	return s.recovered(fn)
}

// recovered turns a panic of the Backend into an error: one pod's trouble must
// not end the node's agent.
func (s *Server) recovered(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("cni backend panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return fn()
}

func (s *Server) backendAdd(ctx context.Context, a Attachment) (res Result, err error) {
	err = s.guarded(ctx, func() error {
		res, err = s.cfg.Backend.Add(ctx, a)
		return err
	})
	return res, err
}

// backendDel deletes without cancellation by anything but its time limit: a
// deletion that is half done helps nobody.
func (s *Server) backendDel(ctx context.Context, id ID) error {
	return s.guarded(ctx, func() error { return s.cfg.Backend.Del(ctx, id) })
}

// health asks the Backend for its status, one question at a time: when one
// hangs, the next ones must not pile up behind it.
func (s *Server) health(ctx context.Context) error {
	if !s.isServing() {
		return errRestoring()
	}
	select {
	case s.status <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("an earlier STATUS hangs: %w", ctx.Err())
	}
	defer func() { <-s.status }()
	err := s.recovered(func() error { return s.cfg.Backend.Status(ctx) })
	switch {
	case errors.Is(err, ErrPoolExhausted), errors.Is(err, ErrPoolCooling):
		return nil // a full node is a working node
	case err == nil, errors.Is(err, ErrLimited), errors.Is(err, ErrTryAgain),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err) // STATUS knows 50 and 51 only
}

// reply sends a response.
func (c *session) reply(r *wire.Response) error {
	frame, err := wire.Frame(r)
	if err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(replyWait)); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	if _, err := c.conn.Write(frame); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	return nil
}

// log writes the one line of an operation.
func (s *Server) log(c *session, code wire.Code, took time.Duration, err error) {
	level := slog.LevelInfo
	switch {
	case err != nil:
		level = slog.LevelWarn
	case c.req.Command == wire.Status, c.req.Command == wire.Check:
		level = slog.LevelDebug
	}
	args := []any{"operation", c.req.Command, "took", took}
	if c.req.ContainerID != "" {
		args = append(args, "container", c.req.ContainerID, "interface", c.req.IfName)
	}
	if pod, perr := parseArgs(c.req.Args); perr == nil && pod.Name.Name != "" {
		args = append(args, "pod", pod.Name.String())
	}
	if err != nil {
		args = append(args, "code", uint(code), "err", err)
	}
	s.cfg.Logger.Log(context.Background(), level, "cni operation", args...)
}
