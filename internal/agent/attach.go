package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/claim"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/limits"
	"github.com/netctl/netctl/internal/agent/port"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/shape"
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

// undoTimeout bounds the undoing of an ADD that failed.
const undoTimeout = 5 * time.Second

// pod is a port that a CNI call made.
type pod struct {
	port    LocalPort
	tun     *kernel.TUN
	rec     *record.Record
	listens bool // on its host ports
	queue   int  // the loop's: the device's queue as it was set last, 0 as it was found
}

// Add implements cni.Backend.
func (a *Agent) Add(ctx context.Context, at cni.Attachment) (res cni.Result, err error) { //nolint:funlen // one order of things, each with its undoing
	if err := servable(at); err != nil {
		return cni.Result{}, err
	}
	release, err := a.holds.Take(ctx, at.ID)
	if err != nil {
		return cni.Result{}, err
	}
	defer release()
	if a.attached(at.ID) {
		return cni.Result{}, fmt.Errorf("%w: %s", cni.ErrExists, at.ID)
	}
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
	path, err := visiblePath(at.NetnsPath, inode)
	if err != nil {
		// Without its path the agent could neither see the pod end nor find its device
		// again after a restart.
		return cni.Result{}, errors.Join(fmt.Errorf("%w: the agent does not see the pod's namespace at %s, which the runtime gave; "+
			"mount its directory into the agent with HostToContainer propagation", cni.ErrUnavailable, at.NetnsPath), err)
	}
	if err := a.endings.Wait(ctx, at.ID, inode); err != nil {
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
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(err, a.remove(undo, at.ID))
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
	rec := &record.Record{
		ContainerID: at.ContainerID, IfName: at.IfName, Namespace: at.Pod.Name.Namespace, Pod: at.Pod.Name.Name,
		UID: at.Pod.UID, Netns: path, NetnsInode: inode, Addresses: lease.Addresses, Port: a.ports.take(datapath.NoPort),
		HostPorts: at.PortMappings, Bandwidth: at.Bandwidth, Annotated: limits.Annotated(at.Annotations),
	}
	defer func() {
		if err != nil && !a.attached(at.ID) { // else remove does it, when nobody uses it any more
			a.ports.release(rec.Port)
		}
	}()
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
	a.register(rec, tun, false)
	a.keeper.Put(estate.Pod(at.ID), tun.FD())
	if err := errors.Join(a.loop.Publish(ctx), a.readable(rec.Port)); err != nil {
		return cni.Result{}, fmt.Errorf("publish the pod's port: %w", err)
	}
	if err := a.listen(at.ID, rec); err != nil {
		return cni.Result{}, err
	}
	return a.result(rec), nil
}

// servable refuses what this version cannot do, so that nobody believes it done.
func servable(at cni.Attachment) error {
	if len(at.Addresses) > 0 {
		return fmt.Errorf("%w: a fixed address (%s)", cni.ErrUnsupported, at.Addresses[0])
	}
	for _, m := range at.PortMappings {
		if m.Protocol != model.TCP && m.Protocol != model.UDP {
			return fmt.Errorf("%w: hostPort %d of protocol %s: only TCP and UDP have host ports", cni.ErrUnsupported, m.HostPort, m.Protocol)
		}
	}
	return nil
}

// wire makes the pod's device where it is used, which is fifteen times as fast
// as moving it there. Our descriptor keeps the pod's namespace alive, so collect
// looks for namespaces whose path is gone.
func (a *Agent) wire(ns *kernel.Namespace, rec *record.Record) (*kernel.TUN, error) {
	addrs := hostPrefixes(rec.Addresses)
	tun, err := kernel.CreateTUNIn(ns, kernel.Interface{
		Name: rec.IfName, MTU: a.mtu, TxQueueLen: txQueueLen, GSOMaxSize: gsoMaxSize(a.mtu),
		Addresses: addrs, Routes: kernel.DefaultRoutes(addrs), Persist: true,
		OnOptional: func(err error) {
			a.log.Debug("optional setting of a pod's interface not made", "pod", rec.Name(), "error", err)
		},
	}, a.offload.Works)
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

func (a *Agent) result(rec *record.Record) cni.Result {
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
		for _, p := range claim.Pools(state, a.ranges) {
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

// attached reports whether an attachment has a port.
func (a *Agent) attached(id cni.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pods[id] != nil
}

// register gives a pod's device its port; the next turn of the loop publishes
// it.
func (a *Agent) register(rec *record.Record, tun *kernel.TUN, listens bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out, queue := port.TUN{TUN: tun}, txQueueLen
	if listens {
		queue = 0 // taken over: as the last agent left it
	}
	a.pods[rec.ID()] = &pod{
		tun: tun, rec: rec, listens: listens, queue: queue,
		port: LocalPort{
			ID: rec.Port, Kind: datapath.KindPod, Port: out, Name: rec.Name(), MTU: a.mtu,
			Addrs: rec.Addresses, Incarnation: rec.ContainerID, Plain: a.plain(),
			Pod: model.Name{Namespace: rec.Namespace, Name: rec.Pod}, Asked: limits.Asked{Bandwidth: rec.Bandwidth, Annotated: rec.Annotated}, Shaper: shape.New(out.Write),
		},
	}
}

// Del implements cni.Backend.
func (a *Agent) Del(ctx context.Context, id cni.ID) error {
	release, err := a.holds.Take(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return a.remove(ctx, id)
}

// remove gives back everything of an attachment, in whatever state it is. The
// caller holds the attachment.
func (a *Agent) remove(ctx context.Context, id cni.ID) error {
	a.mu.Lock()
	p := a.pods[id]
	delete(a.pods, id)
	a.mu.Unlock()
	if p == nil {
		// Nothing of it is left, unless its device is still on its way out.
		if err := a.endings.Wait(ctx, id, 0); err != nil {
			return fmt.Errorf("wait for the device of %s to end: %w", id, err)
		}
		if err := a.records.Delete(id.ContainerID, id.IfName); err != nil {
			return err
		}
		return a.release(id)
	}
	if err := a.loop.Publish(ctx); err != nil {
		a.mu.Lock()
		a.pods[id] = p // still in the tables: the next attempt takes it out
		a.mu.Unlock()
		return fmt.Errorf("take %s out of the tables: %w", id, err)
	}
	a.forget(p.rec.Addresses)
	a.ports.release(p.port.ID)
	end := func() {
		a.keeper.Drop(estate.Pod(id)) // with a copy held the device would stay
		if err := p.tun.Destroy(); err != nil {
			a.log.Warn("pod's device not destroyed; it ends with its namespace", "pod", p.rec.Name(), "error", err)
		}
		if err := a.records.Delete(id.ContainerID, id.IfName); err != nil {
			a.log.Warn("port record not deleted; it goes with the pod's namespace", "pod", p.rec.Name(), "error", err)
		}
	}
	ended := *p.rec
	ended.Ready = false
	if err := a.records.Put(&ended); err != nil {
		end() // now, for it would not be remembered
	} else {
		a.endings.Begin(id, p.rec.NetnsInode, end)
	}
	return a.release(id)
}

// release gives an attachment's addresses back.
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
