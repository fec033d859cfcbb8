package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/netctl/netctl/cni/queue"
	"github.com/netctl/netctl/cni/wire"
)

// queueReserve is what DEL always leaves for the queue before its end.
const queueReserve = 200 * time.Millisecond

// call is one request to the agent.
type call struct {
	req    wire.Request
	conf   *config
	stderr io.Writer
	wait   time.Time // when to stop waiting for the agent
	end    time.Time // when the plugin must have ended
}

// do asks the agent. An error that is a *wire.Error is the answer to give;
// any other says that the agent gave none.
func (c *call) do() (outcome, error) {
	netns, err := c.openNetns()
	if err != nil {
		return outcome{}, err
	}
	if netns >= 0 {
		defer func() { _ = syscall.Close(netns) }()
	}
	s, err := dial(c.conf.Socket, c.wait)
	if err != nil {
		return outcome{}, err
	}
	resp, err := c.exchange(s, netns)
	if err != nil {
		s.close()
		return outcome{}, err
	}
	if c.req.Command == wire.Status && resp.Exit != 0 && errorCode(resp.Output) == wire.CodeTryAgain {
		s.close()
		return outcome{}, errRestoring
	}
	if resp.Exit == 0 && (c.req.Command == wire.Status || c.req.Command == wire.Add) {
		// Losing this only shortens the grace of a later restart.
		if err := noteHealthy(c.conf.Socket); err != nil {
			_, _ = fmt.Fprintf(c.stderr, "note the agent's health: %v\n", err)
		}
	}
	out := outcome{Response: *resp, delivered: s.close}
	if resp.Ack {
		out.delivered = func() {
			_ = s.send([]byte{wire.Ack}, -1)
			s.close()
		}
	}
	return out, nil
}

func (c *call) exchange(s *socket, netns int) (*wire.Response, error) {
	c.req.BudgetMS = max(1, time.Until(c.wait).Milliseconds())
	frame, err := wire.Frame(&c.req)
	if err != nil {
		return nil, wire.Errorf(wire.CodeDecode, "the request cannot be encoded: %v", err)
	}
	// An agent that refuses us answers without reading and closes.
	sent := s.send(frame, netns)
	if sent != nil && !errors.Is(sent, syscall.EPIPE) {
		return nil, fmt.Errorf("send request: %w", sent)
	}
	body, err := wire.ReadFrame(s)
	if err != nil {
		return nil, errors.Join(err, sent)
	}
	return wire.DecodeResponse(body)
}

// openNetns opens the pod's network namespace, which the agent may not be able
// to reach by its path. Only ADD and CHECK need one; -1 is none. What the path
// leads to is the agent's to check, but opening it must not block.
func (c *call) openNetns() (int, error) {
	if c.req.Command != wire.Add && c.req.Command != wire.Check {
		return -1, nil
	}
	fd, err := syscall.Open(c.req.Netns, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ESRCH):
		return -1, wire.Errorf(wire.CodeNetns, "network namespace %.200q is gone: the sandbox has ended; the runtime must make a new one", c.req.Netns)
	default:
		return -1, wire.Errorf(wire.CodeNetns, "network namespace %.200q cannot be opened: %v; "+
			"run the plugin as the user that owns the sandbox", c.req.Netns, err)
	}
}

// unanswered decides what to say when the agent gave no answer.
func (c *call) unanswered(cause error) outcome {
	var werr *wire.Error
	switch c.req.Command {
	case wire.Del:
		return c.queueDel(cause)
	case wire.Status:
		if healthyLately(c.conf.Socket) {
			return outcome{}
		}
		werr = wire.Errorf(wire.CodeUnavailable, "the netctl agent of this node is not serving (%s): %s", c.conf.Socket, advice(cause))
	case wire.Add:
		werr = wire.Errorf(wire.CodeUnavailable, "the netctl agent of this node is not running (%s): %s", c.conf.Socket, advice(cause))
		if wasThere(cause) || healthyLately(c.conf.Socket) {
			werr = wire.Errorf(wire.CodeTryAgain, "the netctl agent of this node is restarting or busy (%s), the runtime will retry: %s",
				c.conf.Socket, advice(cause))
		}
	default:
		werr = wire.Errorf(wire.CodeTryAgain, "the netctl agent of this node does not answer %s (%s), try again: %s",
			c.req.Command, c.conf.Socket, advice(cause))
	}
	werr.CNIVersion, werr.Details = c.conf.CNIVersion, cause.Error()
	return fail(werr)
}

// queueDel notes a deletion that the agent did not take. Success is the answer
// even when the queue is full: a pod that cannot be deleted would stay for
// ever, while an address that nobody released is found by the agent's own
// garbage collection.
func (c *call) queueDel(cause error) outcome {
	q := queue.Beside(c.conf.Socket)
	err := q.Push(queue.Entry{ContainerID: c.req.ContainerID, IfName: c.req.IfName}, c.end.Add(-queueReserve))
	if err != nil && !errors.Is(err, queue.ErrFull) {
		return fail(&wire.Error{
			CNIVersion: c.conf.CNIVersion,
			Code:       wire.CodeTryAgain,
			Msg: fmt.Sprintf("the netctl agent of this node does not answer and the deletion cannot be noted in %s, try again: %v; %s",
				q.Dir(), err, advice(cause)),
			Details: cause.Error(),
		})
	}
	_, _ = fmt.Fprintf(c.stderr, "agent does not answer, deletion queued in %s: %v\n", q.Dir(), errors.Join(cause, err))
	return outcome{}
}

// wasThere reports whether an agent took the call, even if it did not end it.
func wasThere(cause error) bool {
	for _, sign := range []error{errRestoring, os.ErrDeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(cause, sign) {
			return true
		}
	}
	return false
}

// advice says what a person can do about an agent that does not answer.
func advice(cause error) string {
	switch {
	case errors.Is(cause, errRestoring):
		return "it is adopting the pods that run already; wait a moment"
	case errors.Is(cause, syscall.EACCES), errors.Is(cause, syscall.EPERM):
		return "permission denied: run the plugin as the agent's own user"
	case errors.Is(cause, syscall.ENOENT), errors.Is(cause, syscall.ECONNREFUSED):
		return "start the agent (on Kubernetes the netctl pod of this node)"
	case errors.Is(cause, os.ErrDeadlineExceeded):
		return "it did not answer in time; see its log and whether the node is overloaded"
	default:
		return "it went away while it worked; see its log"
	}
}
