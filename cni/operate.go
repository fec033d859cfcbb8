package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/netctl/netctl/cni/queue"
	"github.com/netctl/netctl/cni/wire"
	"github.com/netctl/netctl/internal/kernel"
)

// maxBudget is the longest that an operation may take, whatever the plugin
// says.
func maxBudget(command string) time.Duration {
	switch command {
	case wire.Status:
		return time.Second
	case wire.GC:
		return 30 * time.Second
	default:
		return 10 * time.Second
	}
}

// session is one connected plugin with its request.
type session struct {
	conn    *net.UnixConn
	req     *wire.Request
	netns   *os.File
	conf    *networkConfig
	started time.Time
	limit   time.Duration
	acked   chan struct{} // closed when the plugin acknowledged
	gone    chan struct{} // closed when the plugin went away
}

// handle answers one plugin. The order is: who, what, how, then the operation.
func (s *Server) handle(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	uid, err := kernel.PeerUID(conn)
	if err != nil {
		s.cfg.Logger.Warn("cni connection refused", "err", err)
		return
	}
	c := &session{conn: conn, started: time.Now(), acked: make(chan struct{}), gone: make(chan struct{})}
	if uid != ownUser() {
		s.cfg.Logger.Warn("cni connection refused", "uid", uid)
		_ = c.reply(wire.Errorf(wire.CodeUnavailable, "user %d may not speak to the agent: run the plugin as user %d", uid, ownUser()).Response())
		return
	}
	_ = conn.SetReadDeadline(c.started.Add(requestWait))
	body, netns, err := receive(conn)
	if err != nil {
		s.cfg.Logger.Warn("cni request not readable", "err", err)
		_ = c.reply(wire.Errorf(wire.CodeDecode, "the agent cannot read the plugin's request: %v", err).Response())
		return
	}
	if netns != nil {
		c.netns = netns
		defer func() { _ = netns.Close() }()
	}
	req, werr := wire.DecodeRequest(body)
	if werr == nil {
		c.req = req
		c.conf, werr = parseConfig(req.Command, req.Config)
	}
	if werr != nil {
		s.cfg.Logger.Warn("cni request refused", "code", uint(werr.Code), "err", werr)
		_ = c.reply(werr.Response())
		return
	}
	c.limit = maxBudget(req.Command)
	if ms := req.BudgetMS; ms > 0 && ms < c.limit.Milliseconds() {
		c.limit = time.Duration(ms) * time.Millisecond
	}
	s.serve(ctx, c)
}

// serve runs the operation of a session, with a context that ends when the
// plugin goes away.
func (s *Server) serve(ctx context.Context, c *session) {
	limited, cancel := context.WithDeadline(ctx, c.started.Add(c.limit))
	defer cancel()
	present, leave := context.WithCancel(limited)
	defer leave()
	_ = c.conn.SetReadDeadline(time.Time{})
	var wg sync.WaitGroup
	wg.Go(func() { c.watch(leave) })
	defer wg.Wait()
	defer func() { _ = c.conn.Close() }() // ends watch

	err := s.operate(limited, present, c)
	code := wire.Code(0)
	if err != nil {
		e := asError(err)
		code, e.CNIVersion = e.Code, c.conf.CNIVersion
		_ = c.reply(e.Response())
	}
	took := time.Since(c.started)
	s.log(c, code, took, err)
	s.cfg.Observe(c.req.Command, uint(code), took)
}

// watch reads the one byte that a plugin may still send, or its end.
func (c *session) watch(leave context.CancelFunc) {
	var b [1]byte
	n, err := c.conn.Read(b[:])
	if err == nil && n == 1 && b[0] == wire.Ack {
		close(c.acked)
		return
	}
	close(c.gone)
	leave()
}

// operate carries out the request and, when that succeeds, replies; the caller
// replies to an error. limited ends with the time limit, present also when the
// plugin goes away.
func (s *Server) operate(limited, present context.Context, c *session) error {
	switch c.req.Command {
	case wire.Add:
		return s.add(limited, present, c)
	case wire.Del:
		if err := s.del(limited, ID{c.req.ContainerID, c.req.IfName}); err != nil {
			return err
		}
	case wire.Check:
		if err := s.check(present, c); err != nil {
			return err
		}
	case wire.GC:
		if err := s.gc(present, c); err != nil {
			return err
		}
	case wire.Status:
		if err := s.health(present); err != nil {
			return err
		}
	default: // VERSION is the plugin's own
		return wire.Errorf(wire.CodeEnvironment, "the agent does not answer %s", c.req.Command)
	}
	_ = c.reply(&wire.Response{}) // nothing is lost with a plugin that is gone
	return nil
}

func (s *Server) add(limited, present context.Context, c *session) error {
	a, werr := c.conf.attachment(c.req)
	if werr != nil {
		return werr
	}
	if werr := checkNetns(c.netns, c.req.Netns); werr != nil {
		return werr
	}
	a.Netns = c.netns
	if !s.isServing() {
		return errRestoring()
	}
	unlock, err := s.containers.lock(present, a.ContainerID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.settle(present, a.ID); err != nil {
		return &Error{Code: wire.CodeTryAgain, Msg: "an earlier deletion of this container is not done yet, the runtime will retry", Details: err.Error()}
	}
	if err := present.Err(); err != nil {
		return err // the plugin was killed while it waited
	}
	s.recent.add(a.ID, time.Now())
	res, err := s.backendAdd(present, a)
	if err != nil {
		return err
	}
	out, err := render(&a, res, c.conf.CNIVersion, c.conf.PrevResult)
	if err == nil && present.Err() == nil && s.deliver(limited, c, out) {
		return nil
	}
	s.recent.remove(a.ID)
	s.undo(a.ID)
	if err == nil {
		err = fmt.Errorf("result was not delivered, the addition was undone: %w", context.Canceled)
	}
	return err
}

// deliver reports whether the result of an ADD reached the runtime. While the
// server stops, a plugin that is still there is given the benefit of the
// doubt: its attachment is on record, and the runtime's DEL will find it.
func (s *Server) deliver(ctx context.Context, c *session, out []byte) bool {
	if c.reply(&wire.Response{Output: out, Ack: true}) != nil {
		return false
	}
	timer := time.NewTimer(time.Until(c.started.Add(c.limit + ackSlack)))
	defer timer.Stop()
	var stopping <-chan time.Time
	ended := ctx.Done()
	for {
		select {
		case <-c.acked:
			return true
		case <-c.gone:
			return false
		case <-timer.C:
			return false
		case <-stopping:
			return true
		case <-ended:
			ended = nil
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				stop := time.NewTimer(ackStopping)
				defer stop.Stop()
				stopping = stop.C
			}
		}
	}
}

// undo takes back an addition whose result reached nobody. The caller holds
// the container's lock.
func (s *Server) undo(id ID) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	err := s.backendDel(ctx, id)
	if err == nil {
		s.cfg.Logger.Info("addition undone", "container", id.ContainerID, "interface", id.IfName)
		return
	}
	if err := s.postpone(id, err); err != nil {
		s.cfg.Logger.Error("addition not undone", "container", id.ContainerID, "interface", id.IfName, "err", err)
	}
}

// del deletes now or, whatever stands in the way, later. It is not cancelled
// when the plugin goes away.
func (s *Server) del(ctx context.Context, id ID) error {
	if !s.isServing() {
		return s.postpone(id, errRestoring())
	}
	unlock, err := s.containers.lock(ctx, id.ContainerID)
	if err != nil {
		return s.postpone(id, err)
	}
	defer unlock()
	if err := s.backendDel(ctx, id); err != nil {
		return s.postpone(id, err)
	}
	s.recent.remove(id)
	// A record that stays by mistake is carried out again, under the lock and
	// before the container is added again: harmless.
	if err := s.queue.Remove(queue.Entry(id)); err != nil {
		s.cfg.Logger.Warn("queued deletion not removed", "container", id.ContainerID, "interface", id.IfName, "err", err)
	}
	return nil
}

func (s *Server) check(ctx context.Context, c *session) error {
	a, werr := c.conf.attachment(c.req)
	if werr != nil {
		return werr
	}
	if werr := checkNetns(c.netns, c.req.Netns); werr != nil {
		return werr
	}
	a.Netns = c.netns
	prev, err := parsePrev(c.conf.PrevResult, &a)
	if err != nil {
		return wire.Errorf(wire.CodeConfig, "%v", err)
	}
	if !s.isServing() {
		return errRestoring()
	}
	unlock, err := s.containers.lock(ctx, a.ContainerID)
	if err != nil {
		return err
	}
	defer unlock()
	return s.guarded(ctx, func() error { return s.cfg.Backend.Check(ctx, a, prev) })
}

func (s *Server) gc(ctx context.Context, c *session) error {
	valid, werr := c.conf.valid()
	if werr != nil {
		return werr
	}
	if !s.isServing() {
		return errRestoring()
	}
	valid = append(valid, s.recent.list(time.Now())...)
	return s.guarded(ctx, func() error { return s.cfg.Backend.GC(ctx, valid) })
}

// errRestoring is the answer until the agent has adopted what exists.
func errRestoring() *Error {
	return wire.Errorf(wire.CodeTryAgain, "the netctl agent is adopting the pods that run already, the runtime will retry")
}
