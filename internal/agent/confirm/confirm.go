// Package confirm decides whether a process may begin with what the last one knew of
// the cluster, or has to hear it from the cluster itself:
//
//	nobody serves              the last process' at once: pods wait
//	somebody serves, and
//	  the cluster answers      the cluster's, however long it takes: whoever serves
//	                           has it, and a process that never gets it must not follow
//	  nobody answers           the last process' after a while: nobody has better
//
// What a process began with of the last one's is looked up as soon as the cluster
// answers.
package confirm

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
)

const (
	// poll is how soon it is looked again whether the cluster has answered; each
	// further wait is longer, up to pollMax.
	poll    = 10 * time.Millisecond
	pollMax = 250 * time.Millisecond
	// say is how long nothing is said of the wait, and then how often it is.
	say = 5 * time.Second
	// silence is how long nobody must have answered before a process follows one that
	// serves with what that one knew. It is longer than an API server takes to restart.
	silence = 30 * time.Second
	// retry is how soon the facts are asked for again, retryMax how seldom.
	retry    = 5 * time.Second
	retryMax = time.Minute
)

// Cluster is what is asked.
type Cluster interface {
	// Facts returns what the cluster was set up with, which may be known from the last
	// process.
	Facts(ctx context.Context) (settings.Cluster, error)
	// LiveFacts returns it as it is now. The next process knows it once this returns.
	LiveFacts(ctx context.Context) (settings.Cluster, error)
	// Unconfirmed returns what keeps the State from being what the cluster says now,
	// rather than what it said to the last process; cluster.ErrNoAnswer while nobody
	// can be asked, nil when nothing does.
	Unconfirmed() error
}

// Confirmer is for one process, whose seat is in Dir.
type Confirmer struct {
	Cluster Cluster // nil: there is nothing to wait for or to ask
	Dir     string
	Log     *slog.Logger

	alone bool // nobody answers, and what the last process knew has to do
}

// Await waits for what the cluster says now while another agent serves. It and Facts
// are called from one goroutine.
func (c *Confirmer) Await(ctx context.Context) error {
	heard, said := time.Now(), time.Now()
	for wait := poll; c.Cluster != nil && !c.alone; wait = min(2*wait, pollMax) {
		err := c.Cluster.Unconfirmed()
		if err == nil || !handover.Served(c.Dir) {
			return nil
		}
		now := time.Now()
		if !errors.Is(err, cluster.ErrNoAnswer) {
			heard = now
		}
		if now.Sub(heard) >= silence {
			c.Log.Warn("nobody answers for the cluster: this agent follows the one that serves with what that one knew", "error", err)
			c.alone = true
			return nil
		}
		if now.Sub(said) >= say {
			c.Log.Warn("another agent serves, which this one does not follow before it knows what the cluster says", "missing", err)
			said = now
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// Facts asks for the facts, by the same rule, until they are known or the context
// ends.
func (c *Confirmer) Facts(ctx context.Context) (settings.Cluster, error) {
	for {
		ask := c.Cluster.Facts
		if !c.alone && handover.Served(c.Dir) {
			ask = c.Cluster.LiveFacts
		}
		facts, err := ask(ctx)
		if err == nil {
			return facts, nil
		}
		if err := c.pause(ctx, retry, err); err != nil {
			return settings.Cluster{}, err
		}
	}
}

// LiveFacts asks for the facts of now likewise.
func (c *Confirmer) LiveFacts(ctx context.Context) (settings.Cluster, error) {
	for wait := retry; ; wait = min(2*wait, retryMax) {
		facts, err := c.Cluster.LiveFacts(ctx)
		if err == nil {
			return facts, nil
		}
		if err := c.pause(ctx, wait, err); err != nil {
			return settings.Cluster{}, err
		}
	}
}

// pause says what is wrong, and waits.
func (c *Confirmer) pause(ctx context.Context, d time.Duration, why error) error {
	if ctx.Err() == nil {
		c.Log.Warn("the cluster's own settings are not known yet, trying again", "error", why)
	}
	return sleep(ctx, d)
}

// Confirmed returns the facts of now once the State is the cluster's, too.
func (c *Confirmer) Confirmed(ctx context.Context) (settings.Cluster, error) {
	for wait := poll; c.Cluster.Unconfirmed() != nil; wait = min(2*wait, pollMax) {
		if err := sleep(ctx, wait); err != nil {
			return settings.Cluster{}, err
		}
	}
	return c.LiveFacts(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
