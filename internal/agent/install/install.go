// Package install keeps a node's container runtime told to use netctl, for as long
// as the agent serves: others clean those directories, too, or put a network of
// their own before ours.
package install

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/netctl/netctl/cni"
)

// interval is how often the installation is looked at.
const interval = 30 * time.Second

// Keeper keeps one installation in place.
type Keeper struct {
	in  cni.Installation // immutable
	log *slog.Logger

	mu     sync.Mutex
	tried  bool     // guarded by mu
	err    error    // guarded by mu: why it is not in place
	before []string // guarded by mu: configurations that the runtime reads instead of ours
}

// NewKeeper returns a Keeper that has touched nothing yet.
func NewKeeper(in cni.Installation, log *slog.Logger) *Keeper { return &Keeper{in: in, log: log} }

// errUntried: Run has not begun to work.
var errUntried = errors.New("the plugin is not installed yet")

// Err returns why the plugin and its configuration are not in place; nil says
// that they are.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.tried {
		return errUntried
	}
	return k.err
}

// Before returns the configurations of others that the runtime reads instead.
func (k *Keeper) Before() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.before
}

// Run installs when serving is closed, and again whenever something is missing,
// until the context ends. What is in place then stays: pods are added again when
// the next agent serves.
func (k *Keeper) Run(ctx context.Context, serving <-chan struct{}) error {
	select {
	case <-serving:
	case <-ctx.Done():
		return nil
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		k.install()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *Keeper) install() {
	report, err := cni.Install(k.in)
	k.mu.Lock()
	changed := !slices.Equal(k.before, report.Before)
	k.tried, k.err, k.before = true, err, report.Before
	k.mu.Unlock()
	switch {
	case err != nil:
		k.log.Error("plugin not installed, trying again", "error", err)
	case report.BinaryWritten || report.ConflistWritten || report.LoopbackAdded:
		k.log.Info("plugin installed", "binary_written", report.BinaryWritten, "conflist_written", report.ConflistWritten,
			"loopback_added", report.LoopbackAdded)
	}
	if changed {
		for _, name := range report.Before {
			k.log.Warn("the container runtime reads another network's configuration first and does not use netctl: remove or rename it",
				"file", name, "directory", k.in.ConfDir)
		}
	}
}
