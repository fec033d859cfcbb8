package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/netctl/netctl/cni"
)

// installed is what is known of the plugin's installation. The zero value says
// that nothing was tried.
type installed struct {
	mu     sync.Mutex
	done   bool     // guarded by mu: everything is in place
	err    error    // guarded by mu: why it is not
	before []string // guarded by mu: configurations that the runtime reads instead of ours
}

func (i *installed) set(r cni.Report, err error) (changed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	changed = !i.done || err != nil || !slices.Equal(i.before, r.Before)
	i.done, i.err, i.before = err == nil, err, r.Before
	return changed
}

func (i *installed) get() (before []string, done bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.before, i.done, i.err
}

// keepInstalled tells the container runtime of this node to use netctl as soon as
// additions are served, and looks from time to time whether it still does: others
// clean these directories, too.
func (a *Agent) keepInstalled(ctx context.Context) error {
	if a.cfg.Install == nil {
		return nil
	}
	select {
	case <-a.cni.Serving():
	case <-ctx.Done():
		return nil
	}
	ticker := time.NewTicker(reconcileInterval)
	defer ticker.Stop()
	for {
		report, err := cni.Install(*a.cfg.Install)
		changed := a.installed.set(report, err)
		switch {
		case err != nil:
			a.log.Error("plugin not installed, trying again", "error", err)
		case report.BinaryWritten || report.ConflistWritten || report.LoopbackAdded:
			a.log.Info("plugin installed", "binary_written", report.BinaryWritten, "conflist_written", report.ConflistWritten,
				"loopback_added", report.LoopbackAdded)
		}
		if changed && err == nil {
			for _, name := range report.Before {
				a.log.Warn("the container runtime reads another network's configuration first and does not use netctl: remove or rename it",
					"file", name, "directory", a.cfg.Install.ConfDir)
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// alive reports what of the agent does not go on.
func (a *Agent) alive(now time.Time) error {
	var errs []error
	for what, last := range map[string]time.Time{"loop": a.loop.Turned(), "housekeeping": time.Unix(0, a.turned.Load())} {
		if last.Unix() > 0 && now.Sub(last) > staleTurn {
			errs = append(errs, fmt.Errorf("%s stands still since %s", what, now.Sub(last).Round(time.Second)))
		}
	}
	return errors.Join(errs...)
}

// ready reports why pods cannot be added here yet.
func (a *Agent) ready() error {
	select {
	case <-a.cni.Serving():
	default:
		return errors.New("the agent takes over the pods that run already")
	}
	if a.cfg.Install == nil {
		return nil
	}
	if _, done, err := a.installed.get(); !done {
		return errors.Join(errors.New("the plugin is not installed yet"), err)
	}
	return nil
}
