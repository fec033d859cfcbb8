// Package notice tells the owners of the cluster's objects what a node cannot do for
// them, as Events: somebody who has made a Service looks there and not into agents'
// logs.
//
// Whoever knows what is wrong says all of it, again and again (Say); what is new
// becomes one Event. Nothing waits for an API server, nothing is queued without
// bound, and no node writes more than a few Events a second: what is too much is
// only counted.
package notice

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/netctl/netctl/internal/model"
)

// The bounds: Events of a burst, and how soon there can be one more.
const (
	burst    = 25
	interval = 5 * time.Second
	timeout  = 10 * time.Second
	// remembered is how much is known to have been said.
	remembered = 4096
)

// Recorder is where Events are written.
type Recorder interface {
	Record(ctx context.Context, n model.Notice) error
}

// Keeper says everything once. The zero Keeper is not ready for use: see New.
type Keeper struct {
	to  Recorder // nil: nobody is told
	log *slog.Logger
	due chan model.Notice

	mu      sync.Mutex
	said    map[model.Notice]bool // guarded by mu; of what is the matter now
	skipped uint64                // guarded by mu
}

// New returns a Keeper that writes nothing before Run. A nil Recorder is told
// nothing.
func New(to Recorder, log *slog.Logger) *Keeper {
	return &Keeper{to: to, log: log, due: make(chan model.Notice, burst), said: make(map[model.Notice]bool)}
}

// Say says what is the matter now, all of it: what was the matter and is no longer
// may be said again when it comes back.
func (k *Keeper) Say(all []model.Notice) {
	if k.to == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := make(map[model.Notice]bool, min(len(all), remembered))
	for _, n := range all {
		if len(now) == remembered {
			break
		}
		if now[n] {
			continue
		}
		if !k.said[n] {
			select {
			case k.due <- n:
			default:
				k.skipped++
				continue // another time
			}
		}
		now[n] = true
	}
	k.said = now
}

// Skipped returns how often something had to wait.
func (k *Keeper) Skipped() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.skipped
}

// Run writes Events until the context ends. One that cannot be written is lost: it
// is in the log.
func (k *Keeper) Run(ctx context.Context) error {
	tokens := burst
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		due := k.due
		if tokens == 0 {
			due = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tokens = min(tokens+1, burst)
		case n := <-due:
			tokens--
			k.write(ctx, n)
		}
	}
}

func (k *Keeper) write(ctx context.Context, n model.Notice) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := k.to.Record(ctx, n); err != nil && ctx.Err() == nil {
		k.log.Warn("event not written", "about", n.Name.String(), "reason", n.Reason, "text", n.Text, "error", err)
	}
}
