package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/kernel"
)

// Check implements cni.Backend.
func (a *Agent) Check(_ context.Context, at cni.Attachment, prev cni.Result) error {
	a.mu.Lock()
	p := a.pods[at.ID]
	a.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%w: no port for %s", cni.ErrDiffers, at.ID)
	}
	ns, err := kernel.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", at.Netns.Fd()))
	if err != nil {
		return err
	}
	defer ns.Close()
	found, err := kernel.Describe(ns, at.IfName)
	switch {
	case errors.Is(err, kernel.ErrNotFound):
		return fmt.Errorf("%w: interface %s is missing", cni.ErrDiffers, at.IfName)
	case err != nil:
		return err
	case found.Index != p.rec.IfIndex:
		return fmt.Errorf("%w: interface %s is not the one that was made", cni.ErrDiffers, at.IfName)
	case !found.Up:
		return fmt.Errorf("%w: interface %s is down", cni.ErrDiffers, at.IfName)
	}
	for _, want := range prev.Addresses {
		if !slices.Contains(found.Addresses, want) {
			return fmt.Errorf("%w: address %s is missing on %s", cni.ErrDiffers, want, at.IfName)
		}
	}
	for _, want := range prev.Routes {
		if !slices.ContainsFunc(found.Routes, func(r kernel.Route) bool { return r.Dst == want.Dst }) {
			return fmt.Errorf("%w: route to %s is missing", cni.ErrDiffers, want.Dst)
		}
	}
	return nil
}

// GC implements cni.Backend.
func (a *Agent) GC(ctx context.Context, valid []cni.ID) error {
	recs, damaged, err := a.records.All()
	errs := []error{err}
	known := make(map[cni.ID]bool)
	for _, rec := range recs {
		known[rec.ID()] = true
	}
	for _, id := range damaged {
		known[id] = true
	}
	for id := range known {
		if slices.Contains(valid, id) {
			continue
		}
		if release, _ := a.holds.Try(id); release != nil { // else ADD or DEL is at work on it
			errs = append(errs, a.remove(ctx, id))
			release()
		}
	}
	return errors.Join(errs...)
}

// Status implements cni.Backend. Without tables no pod could be served.
func (a *Agent) Status(context.Context) error {
	if a.router.Tables().Revision == 0 {
		return fmt.Errorf("%w: the cluster's state is not known yet", cni.ErrUnavailable)
	}
	return nil
}
