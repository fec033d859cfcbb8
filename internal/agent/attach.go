package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/ipam"
)

// The order of things, so that a kill between any two steps leaves nothing that
// the next agent does not find:
//
//	Add   address leased -> record -> TUN made, persistent -> record ready
//	      -> port published -> answer
//	Del   port taken out of the tables -> flows forgotten -> record not ready
//	      -> address released -> answer; meanwhile TUN destroyed -> record deleted
//
// A lease without a record, a record that is not ready and a record whose
// namespace is gone are what remains of the steps in between; restore and
// collect undo them.

// pod is a port that a CNI call made.
type pod struct {
	port LocalPort
	tun  *kernel.TUN
	rec  *record
}

// Add implements cni.Backend.
func (a *Agent) Add(ctx context.Context, at cni.Attachment) (res cni.Result, err error) {
	if err := servable(at); err != nil {
		return cni.Result{}, err
	}
	if !a.reserve(at.ID) {
		return cni.Result{}, fmt.Errorf("%w: %s", cni.ErrExists, at.ID)
	}
	defer a.unreserve(at.ID)
	// A file descriptor of our own: the attachment's ends with the call.
	fd, err := syscall.Dup(int(at.Netns.Fd()))
	if err != nil {
		return cni.Result{}, fmt.Errorf("keep the pod's namespace: %w", err)
	}
	ns, err := kernel.NamespaceFromFD(fd)
	if err != nil {
		return cni.Result{}, errors.Join(err, syscall.Close(fd))
	}
	defer ns.Close()
	_, inode := ns.Inode()
	if err := a.endings.wait(ctx, at.ID, inode); err != nil {
		return cni.Result{}, fmt.Errorf("wait for the device of an earlier pod to end: %w", err)
	}
	// Look before anything is taken: an interface that exists is not ours to undo.
	if _, err := kernel.Describe(ns, at.IfName); !errors.Is(err, kernel.ErrNotFound) {
		if err == nil {
			err = fmt.Errorf("%w: %s in %s", cni.ErrInterfaceExists, at.IfName, at.NetnsPath)
		}
		return cni.Result{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.remove(context.WithoutCancel(ctx), at.ID))
		}
	}()
	families, err := a.families()
	if err != nil {
		return cni.Result{}, err
	}
	lease, err := a.pool.Allocate(ipam.ID(at.ID), at.Pod.UID, families)
	if err != nil {
		return cni.Result{}, allocationError(err)
	}
	rec := &record{
		ContainerID: at.ContainerID, IfName: at.IfName, Namespace: at.Pod.Name.Namespace, Pod: at.Pod.Name.Name,
		UID: at.Pod.UID, Netns: at.NetnsPath, NetnsInode: inode, Addresses: lease.Addresses,
	}
	if err := a.records.Put(rec); err != nil {
		return cni.Result{}, err
	}
	tun, err := a.wire(ns, rec)
	if err != nil {
		return cni.Result{}, err
	}
	rec.IfIndex, rec.Ready = tun.Index(), true
	if err := a.records.Put(rec); err != nil {
		return cni.Result{}, errors.Join(err, tun.Destroy())
	}
	a.register(rec, tun)
	if err := a.loop.Publish(ctx); err != nil {
		return cni.Result{}, fmt.Errorf("publish the pod's port: %w", err)
	}
	return a.result(rec), nil
}

// servable refuses what this version cannot do, so that nobody believes it done.
func servable(at cni.Attachment) error {
	switch {
	case len(at.Addresses) > 0:
		return fmt.Errorf("%w: a fixed address (%s)", cni.ErrUnsupported, at.Addresses[0])
	case len(at.PortMappings) > 0:
		return fmt.Errorf("%w: hostPort %d", cni.ErrUnsupported, at.PortMappings[0].HostPort)
	case at.Bandwidth != (cni.Bandwidth{}):
		return fmt.Errorf("%w: bandwidth limits", cni.ErrUnsupported)
	default:
		return nil
	}
}

// wire makes the pod's device where it is used, which is fifteen times as fast
// as moving it there. Our descriptor keeps the pod's namespace alive, so collect
// looks for namespaces whose path is gone.
func (a *Agent) wire(ns *kernel.Namespace, rec *record) (*kernel.TUN, error) {
	addrs := hostPrefixes(rec.Addresses)
	tun, err := kernel.CreateTUNIn(ns, kernel.Interface{
		Name: rec.IfName, MTU: a.mtu, TxQueueLen: txQueueLen, GSOMaxSize: gsoMaxSize(a.mtu),
		Addresses: addrs, Routes: kernel.DefaultRoutes(addrs), Persist: true,
		OnOptional: func(err error) {
			a.log.Debug("optional setting of a pod's interface not made", "pod", rec.name(), "error", err)
		},
	}, kernel.AllOffloads())
	switch {
	case errors.Is(err, kernel.ErrExists):
		return nil, fmt.Errorf("%w: %s in %s", cni.ErrInterfaceExists, rec.IfName, rec.Netns)
	case err != nil:
		return nil, fmt.Errorf("give the pod its interface: %w", err)
	}
	return tun, nil
}

func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, addr := range addrs {
		out = append(out, host(addr))
	}
	return out
}

func (a *Agent) result(rec *record) cni.Result {
	res := cni.Result{MTU: a.mtu, Addresses: hostPrefixes(rec.Addresses)}
	for _, r := range kernel.DefaultRoutes(res.Addresses) {
		res.Routes = append(res.Routes, cni.Route{Dst: r.Dst, Gateway: r.Gateway})
	}
	return res
}

// families are those that a pod gets: of the ranges on the Node object or, where
// blocks are claimed, of the pools that they come from. A block that is still on
// its way is waited for: a pod that started without it would never get the
// family.
func (a *Agent) families() (ipam.Families, error) {
	var ready, want ipam.Families
	for _, f := range a.poolFamilies() {
		ready |= f
	}
	want = ready
	state := a.state.Load()
	if self := state.Node(a.cfg.Node); a.cfg.Blocks != nil && self != nil && len(self.PodCIDRs) == 0 {
		for _, p := range blockPools(state, a.cfg.ClusterCIDRs) {
			if p.CIDR.Addr().Is4() {
				want |= ipam.IPv4
			} else {
				want |= ipam.IPv6
			}
		}
	}
	switch {
	case want == 0:
		return 0, fmt.Errorf("%w: node %s has no pod range yet (no podCIDR on its Node object, no block)", cni.ErrTryAgain, a.cfg.Node)
	case ready != want:
		missing := ipam.IPv4
		if ready == ipam.IPv4 {
			missing = ipam.IPv6
		}
		return 0, fmt.Errorf("%w: node %s has no block of %s pod addresses yet", cni.ErrTryAgain, a.cfg.Node, a.pool.Usage(missing).Family)
	}
	return want, nil
}

func (a *Agent) poolFamilies() []ipam.Families {
	return slices.DeleteFunc([]ipam.Families{ipam.IPv4, ipam.IPv6}, func(f ipam.Families) bool { return a.pool.Usage(f).Blocks == 0 })
}

// allocationError says in CNI's terms why there was no address.
func allocationError(err error) error {
	var full *ipam.ExhaustedError
	switch {
	case errors.As(err, &full) && full.Cooling > 0:
		return fmt.Errorf("%w: %w", cni.ErrPoolCooling, err)
	case errors.As(err, &full):
		return fmt.Errorf("%w: %w", cni.ErrPoolExhausted, err)
	default:
		return fmt.Errorf("lease an address: %w", err)
	}
}

// reserve marks an attachment as being added; it fails for one that exists.
func (a *Agent) reserve(id cni.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.adding[id]; ok || a.pods[id] != nil {
		return false
	}
	a.adding[id] = struct{}{}
	return true
}

func (a *Agent) unreserve(id cni.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.adding, id)
}

// register gives a pod's device a port; the next turn of the loop publishes it.
func (a *Agent) register(rec *record, tun *kernel.TUN) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := FirstPodPort
	for a.ids[id] {
		id++
	}
	a.ids[id] = true
	a.pods[rec.id()] = &pod{
		tun: tun, rec: rec,
		port: LocalPort{
			ID: id, Kind: datapath.KindPod, Port: tunPort{tun}, Name: rec.name(), MTU: a.mtu,
			Addrs: rec.Addresses, Incarnation: rec.ContainerID,
		},
	}
}

// Del implements cni.Backend.
func (a *Agent) Del(ctx context.Context, id cni.ID) error { return a.remove(ctx, id) }

// remove gives back everything of an attachment, in whatever state it is.
func (a *Agent) remove(ctx context.Context, id cni.ID) error {
	a.mu.Lock()
	p := a.pods[id]
	delete(a.pods, id)
	a.mu.Unlock()
	if p == nil {
		// Nothing of it is left, unless its device is still on its way out.
		if err := a.endings.wait(ctx, id, 0); err != nil {
			return fmt.Errorf("wait for the device of %s to end: %w", id, err)
		}
		if err := a.records.Delete(id.ContainerID, id.IfName); err != nil {
			return err
		}
		return a.release(id)
	}
	if err := a.loop.Publish(ctx); err != nil {
		a.mu.Lock()
		a.pods[id] = p
		a.mu.Unlock()
		return fmt.Errorf("take %s out of the tables: %w", id, err)
	}
	a.forget(p.rec.Addresses)
	a.mu.Lock()
	delete(a.ids, p.port.ID)
	a.mu.Unlock()
	end := func() {
		if err := p.tun.Destroy(); err != nil {
			a.log.Warn("pod's device not destroyed; it ends with its namespace", "pod", p.rec.name(), "error", err)
		}
		if err := a.records.Delete(id.ContainerID, id.IfName); err != nil {
			a.log.Warn("port record not deleted; it goes with the pod's namespace", "pod", p.rec.name(), "error", err)
		}
	}
	ended := *p.rec
	ended.Ready = false
	if err := a.records.Put(&ended); err != nil {
		end() // now, for it would not be remembered
	} else {
		a.endings.begin(id, p.rec.NetnsInode, end)
	}
	return a.release(id)
}

func (a *Agent) release(id cni.ID) error {
	if _, err := a.pool.Release(ipam.ID(id)); err != nil {
		return fmt.Errorf("release the addresses of %s: %w", id, err)
	}
	return nil
}

// forget ends what is under way with addresses whose pod is gone.
func (a *Agent) forget(addrs []netip.Addr) {
	for _, addr := range addrs {
		a.flows.RemoveAddr(packet.AddrFrom(addr))
		a.stack.Forget(addr)
	}
}

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
	recs, err := a.records.All()
	errs := []error{err}
	known := a.attached() // also those whose record was damaged
	for _, rec := range recs {
		known[rec.id()] = true
	}
	for id := range known {
		if !slices.Contains(valid, id) && a.reserveRemoval(id) {
			errs = append(errs, a.remove(ctx, id))
			a.unreserve(id)
		}
	}
	return errors.Join(errs...)
}

// attached returns which attachments have a port.
func (a *Agent) attached() map[cni.ID]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[cni.ID]bool, len(a.pods))
	for id := range a.pods {
		out[id] = true
	}
	return out
}

// reserveRemoval keeps Add and the collectors apart.
func (a *Agent) reserveRemoval(id cni.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, busy := a.adding[id]; busy {
		return false
	}
	a.adding[id] = struct{}{}
	return true
}

// Status implements cni.Backend. Without tables no pod could be served.
func (a *Agent) Status(context.Context) error {
	if a.router.Tables().Revision == 0 {
		return fmt.Errorf("%w: the cluster's state is not known yet", cni.ErrUnavailable)
	}
	return nil
}

// collect removes ports whose namespace has gone without a DEL, and leases that
// no port has: a runtime that crashes says nothing.
func (a *Agent) collect(ctx context.Context) error {
	mark := a.pool.Mark()
	recs, err := a.records.All()
	if err != nil {
		return err // a lease of a record that could not be read is no leak
	}
	var errs []error
	var live []ipam.ID
	for id := range a.attached() {
		live = append(live, ipam.ID(id))
	}
	for _, rec := range recs {
		id := rec.id()
		if !gone(rec) || !a.reserveRemoval(id) { // alive, or ADD is at work on it
			live = append(live, ipam.ID(id))
			continue
		}
		a.log.Info("pod's namespace is gone, removing its port", "pod", rec.name(), "netns", rec.Netns)
		errs = append(errs, a.remove(ctx, id))
		a.unreserve(id)
	}
	leaked, err := a.pool.Collect(mark, live)
	for _, l := range leaked {
		a.log.Info("leaked addresses released", "container", l.ContainerID, "addresses", fmt.Sprint(l.Addresses))
	}
	return errors.Join(append(errs, err)...)
}

// gone reports whether the namespace of a record has ended: nothing is at its
// path, or another one.
func gone(rec *record) bool {
	ns, err := kernel.OpenNamespace(rec.Netns)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, kernel.ErrNotNamespace)
	}
	defer ns.Close()
	_, inode := ns.Inode()
	return inode != rec.NetnsInode
}

// restore takes over the ports that a former agent left. What cannot be taken
// over is given back.
func (a *Agent) restore() error {
	recs, err := a.records.All()
	if err != nil {
		a.log.Warn("some port records are damaged; they were set aside", "error", err)
	}
	kept := map[ipam.ID]bool{}
	for _, rec := range recs {
		tun, err := a.reattach(rec)
		if errors.Is(err, kernel.ErrBusy) {
			return fmt.Errorf("port of pod %s is held by another process, perhaps another agent: %w", rec.name(), err)
		}
		if err != nil {
			a.log.Info("pod is not taken over", "pod", rec.name(), "reason", err)
			if err := a.records.Delete(rec.ContainerID, rec.IfName); err != nil {
				return err
			}
			continue
		}
		id := ipam.ID(rec.id())
		if err := a.pool.Adopt(id, rec.UID, rec.Addresses); err != nil {
			return errors.Join(fmt.Errorf("take over the addresses of pod %s: %w", rec.name(), err), tun.Close())
		}
		kept[id] = true
		a.register(rec, tun)
	}
	for _, l := range a.pool.Leases() {
		if kept[l.ID] {
			continue
		}
		if _, err := a.pool.Release(l.ID); err != nil {
			return fmt.Errorf("release the addresses of %s: %w", l.ID, err)
		}
	}
	return nil
}

// errUnfinished is why a port whose ADD was cut off is not taken over.
var errUnfinished = errors.New("its ADD was never finished")

// reattach opens the device of a record again.
func (a *Agent) reattach(rec *record) (*kernel.TUN, error) {
	if gone(rec) {
		return nil, fmt.Errorf("its namespace %s is gone: %w", rec.Netns, fs.ErrNotExist)
	}
	ns, err := kernel.OpenNamespace(rec.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if rec.Ready {
		return kernel.AttachTUN(ns, rec.IfName, rec.IfIndex)
	}
	// The device, if it is there, is ours when it has the addresses that we leased.
	found, err := kernel.Describe(ns, rec.IfName)
	if err == nil && found.Kind == "tun" && containsAll(found.Addresses, hostPrefixes(rec.Addresses)) {
		err = kernel.DeleteInterface(ns, rec.IfName)
	}
	if err != nil && !errors.Is(err, kernel.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(errUnfinished, err)
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
