package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/netctl/netctl/internal/agent/handover"
)

// leaveTime bounds how long an agent that is told to end serves on for another one to
// take over: less than a container is given to end after its probe has failed.
const leaveTime = 10 * time.Second

// tenure is a term of service.
type tenure struct {
	seat  *handover.Seat
	once  sync.Once
	begun chan struct{} // closed when it serves
	ended chan struct{} // closed when it does no more
}

func (p *process) enterTerm(seat *handover.Seat) *tenure {
	t := &tenure{seat: seat, begun: make(chan struct{}), ended: make(chan struct{})}
	p.term.Store(t)
	return t
}

func (p *process) leaveTerm(t *tenure) {
	p.term.Store(nil)
	close(t.ended)
}

func (t *tenure) begin() { t.once.Do(func() { close(t.begun) }) }

// outlive runs what lives on when the process is told to end, until another one has
// taken its place or there is none.
func (p *process) outlive(told context.Context, run func(context.Context) error) error {
	ctx, end := context.WithCancel(context.WithoutCancel(told))
	defer end()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		select {
		case <-told.Done():
			p.told.Store(true)
			p.leave(ctx)
			end()
		case <-ctx.Done():
		}
	}()
	err := run(ctx)
	end()
	<-asked
	return err
}

// leave has another agent take over from this one, if it serves: one in reserve, else
// one that the holder starts to stand in.
func (p *process) leave(ctx context.Context) {
	t := p.term.Load()
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	select {
	case <-t.begun: // or what its predecessor has handed over is lost
	case <-t.ended:
		return
	case <-ctx.Done():
		return
	}
	reserve, err := t.seat.Offer()
	switch {
	case err != nil:
		p.log.Warn("the node is left without a successor", "error", err)
		return
	case reserve:
		p.log.Info("told to end: an agent in reserve is to take over")
	case p.keeper.Child(): // what is told to end is the holder
		return
	default:
		if err := p.keeper.Replace(); err != nil {
			p.log.Info("told to end, and nobody is there to take over", "reason", err)
			return
		}
		p.log.Info("told to end: a stand-in is to take over")
	}
	select {
	case <-t.ended:
	case <-ctx.Done():
		p.log.Warn("nobody has taken over from this agent, which ends", "within", leaveTime)
	}
}

// reserve waits until this process is needed again, as the one in reserve, and
// returns an Agent to serve with.
func (p *process) reserve(ctx context.Context, seat *handover.Seat) (a *Agent, next *handover.Seat, legacy *handover.Legacy, err error) {
	for {
		next, err := seat.Retake(ctx)
		offered := errors.Is(err, handover.ErrOffered)
		if err != nil && !offered {
			return nil, nil, nil, err
		}
		if !offered {
			p.retire(false)
			p.log.Warn("no other agent serves this node any more, so this one does again")
		}
		a := newAgent(p)
		if err := a.prepare(); err != nil {
			err = errors.Join(err, a.close())
			if next != nil {
				err = errors.Join(err, next.Leave())
			}
			return nil, nil, nil, err
		}
		if !offered {
			return a, next, nil, nil
		}
		a.copyTables(ctx)
		if next, legacy, err = seat.Accept(ctx, a.wants()...); err == nil {
			p.retire(false)
			p.log.Info("the agent that had taken over is about to end, so this one serves again")
			return a, next, legacy, nil
		}
		p.log.Info("the node is not handed back", "reason", err)
		if err := errors.Join(ignoreDone(ctx, err), a.close()); ctx.Err() != nil {
			return nil, nil, nil, err
		}
	}
}
