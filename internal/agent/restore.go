package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/ipam"
)

// collect removes ports whose namespace has gone without a DEL, and leases that
// no port has, for a runtime that crashes says nothing. It tries again what could
// not be taken over before.
func (a *Agent) collect(ctx context.Context) error {
	mark := a.pool.Mark()
	recs, damaged, err := a.records.All()
	if err != nil {
		return err // a lease of a record that could not be read is no leak
	}
	live := make([]ipam.ID, 0, len(recs)+len(damaged))
	for _, id := range damaged {
		live = append(live, ipam.ID(id))
	}
	var errs []error
	for _, rec := range recs {
		release, _ := a.holds.Try(rec.ID())
		if release == nil { // ADD or DEL is at work on it
			live = append(live, ipam.ID(rec.ID()))
			continue
		}
		stays, err := a.tend(ctx, rec)
		release()
		errs = append(errs, err)
		if stays {
			live = append(live, ipam.ID(rec.ID()))
		}
	}
	leaked, err := a.pool.Collect(mark, live)
	for _, l := range leaked {
		a.log.Info("leaked addresses released", "container", l.ContainerID, "addresses", fmt.Sprint(l.Addresses))
	}
	return errors.Join(append(errs, err)...)
}

// tend removes the port of a record when its namespace has ended and takes it
// over when nobody did yet. It reports whether the port stays. The caller holds
// the attachment.
func (a *Agent) tend(ctx context.Context, rec *record.Record) (stays bool, err error) {
	switch id := rec.ID(); {
	case gone(rec):
		a.log.Info("pod's namespace is gone, removing its port", "pod", rec.Name(), "netns", rec.Netns)
		return false, a.remove(ctx, id)
	case a.attached(id) || a.endings.Has(id):
		return true, nil
	}
	taken, err := a.takeOver(rec, nil)
	switch {
	case err != nil:
		return true, err
	case !taken:
		return false, a.release(rec.ID())
	default:
		a.log.Info("pod is taken over after all", "pod", rec.Name())
		return true, a.loop.Publish(ctx)
	}
}

// gone reports whether the namespace of a record has ended: nothing is at its
// path, or another one.
func gone(rec *record.Record) bool {
	inode, err := inodeAt(rec.Netns)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, kernel.ErrNotNamespace)
	}
	return inode != rec.NetnsInode
}

// visiblePath returns where the agent sees the namespace that the runtime has at
// path. Runtimes speak of /var/run, which is a link to /run on hosts and missing
// in the agent's image.
func visiblePath(path string, inode uint64) (string, error) {
	var errs []error
	for _, p := range []string{path, strings.TrimPrefix(path, "/var")} {
		found, err := inodeAt(p)
		switch {
		case err == nil && found == inode:
			return p, nil
		case err == nil:
			err = fmt.Errorf("another namespace is at %s", p)
		}
		errs = append(errs, err)
		if !strings.HasPrefix(path, "/var/run/") {
			break
		}
	}
	return "", errors.Join(errs...)
}

// inodeAt identifies the namespace at a path.
func inodeAt(path string) (uint64, error) {
	ns, err := kernel.OpenNamespace(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	_, inode := ns.Inode()
	return inode, nil
}

// restore takes over the ports that a former agent left. What has ended is given
// back; what cannot be taken over for another reason stays as it is, for
// collect to try again.
func (a *Agent) restore(e estate.Estate) error {
	recs, damaged, err := a.records.All()
	if err != nil {
		return err
	}
	kept := make(map[ipam.ID]bool)
	for _, id := range damaged {
		a.log.Error("a port's record is damaged: its pod has no network until it is made anew", "container", id.ContainerID, "interface", id.IfName)
		kept[ipam.ID(id)] = true
	}
	for _, rec := range recs {
		taken, err := a.takeOver(rec, e)
		if errors.Is(err, kernel.ErrBusy) {
			return fmt.Errorf("port of pod %s is held by another process, perhaps another agent: %w", rec.Name(), err)
		}
		if err != nil {
			a.log.Warn("pod is not taken over, trying again later", "pod", rec.Name(), "error", err)
		}
		kept[ipam.ID(rec.ID())] = taken || err != nil
	}
	for _, l := range a.pool.Leases() {
		if kept[l.ID] {
			continue
		}
		if err := a.release(cni.ID(l.ID)); err != nil {
			return err
		}
	}
	return nil
}

// takeOver gives a record's device its port again. When the record is about
// nothing that exists any more it is deleted and not taken. A device whose descriptor
// is in the estate is not touched.
func (a *Agent) takeOver(rec *record.Record, e estate.Estate) (taken bool, err error) {
	tun, err := a.reattach(rec, e)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, kernel.ErrNotFound), errors.Is(err, kernel.ErrChanged), errors.Is(err, errUnfinished):
		a.log.Info("pod's port is given back", "pod", rec.Name(), "reason", err)
		return false, a.records.Delete(rec.ContainerID, rec.IfName)
	case err != nil:
		return false, err
	}
	if err := a.pool.Adopt(ipam.ID(rec.ID()), rec.UID, rec.Addresses); err != nil {
		return false, errors.Join(fmt.Errorf("take over the addresses of pod %s: %w", rec.Name(), err), tun.Close())
	}
	a.switchOffloads(tun)
	rec.Port = a.ports.take(rec.Port)
	a.register(rec, tun, true)
	if e == nil { // else all are given to the holder together
		a.keeper.Put(estate.Pod(rec.ID()), tun.FD())
	}
	return true, nil
}

// errUnfinished is why a port whose ADD or DEL was cut off is not taken over. It
// means that nothing of it is left.
var errUnfinished = errors.New("its ADD or DEL was cut off")

// reattach opens the device of a record again.
func (a *Agent) reattach(rec *record.Record, e estate.Estate) (*kernel.TUN, error) {
	fd, held := e.TakeOne(estate.Pod(rec.ID()))
	if held && rec.Ready && !gone(rec) {
		tun, err := kernel.AdoptTUN(fd, rec.IfName, rec.IfIndex, rec.NetnsInode)
		if err == nil {
			return tun, nil
		}
		a.log.Warn("pod's interface is opened anew", "pod", rec.Name(), "error", err)
	} else if held {
		kernel.CloseFDs([]int{fd})
	}
	if gone(rec) {
		return nil, fmt.Errorf("its namespace %s is gone: %w", rec.Netns, fs.ErrNotExist)
	}
	ns, err := kernel.OpenNamespace(rec.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if rec.Ready {
		return unlessBusy(a, func() (*kernel.TUN, error) { return kernel.AttachTUN(ns, rec.IfName, rec.IfIndex) })
	}
	// The device, if it is there, is ours when it has the addresses that we leased.
	found, err := kernel.Describe(ns, rec.IfName)
	if err == nil && found.Kind == "tun" && containsAll(found.Addresses, hostPrefixes(rec.Addresses)) {
		err = kernel.DeleteInterface(ns, rec.IfName)
	}
	if err != nil && !errors.Is(err, kernel.ErrNotFound) {
		return nil, fmt.Errorf("undo an ADD that was cut off: %w", err)
	}
	return nil, errUnfinished
}

func containsAll(have, want []netip.Prefix) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}
