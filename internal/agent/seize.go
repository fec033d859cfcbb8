package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/claim"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/loop"
	"github.com/netctl/netctl/internal/agent/port"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/ipam"
	"github.com/netctl/netctl/overlay"
)

// lockTime bounds the wait for what a process had that has just died: its locks are
// free when the kernel has closed all its files.
const lockTime = 3 * time.Second

// seize makes or takes over what only one agent of a node can have, in the order in
// which one thing needs another, up to tables that are in force: after it, reading is
// all that is missing. What there is in the estate is used before it is opened anew;
// seize owns it.
func (a *Agent) seize(e estate.Estate) error {
	if e == nil {
		e = make(estate.Estate)
	}
	defer e.Close() // what nobody wanted: its pod is gone
	if err := a.openPool(); err != nil {
		return fmt.Errorf("open the address record: %w", err)
	}
	if err := a.openHost(e); err != nil {
		return fmt.Errorf("open %s: %w", HostInterface, err)
	}
	if err := a.openOutside(e); err != nil {
		return fmt.Errorf("carry pods' packets to the outside: %w", err)
	}
	workers := a.cfg.Workers
	if workers == 0 {
		workers = max(1, runtime.NumCPU()/2)
	}
	var err error
	if a.workers, err = datapath.NewWorkers(a.router, workers); err != nil {
		return err
	}
	key, err := overlay.LoadOrCreateKey(filepath.Join(a.cfg.DataDir, keyFile))
	if err != nil {
		return fmt.Errorf("read the node's key: %w", err)
	}
	a.key = key.Public()
	if err := a.openEngine(key, e); err != nil {
		return fmt.Errorf("open the overlay: %w", err)
	}
	a.switchOffloads(a.host)
	a.claims = claim.New(a.claimConfig())
	a.mu.Lock()
	a.fixed = append([]LocalPort{
		{ID: HostPort, Kind: datapath.KindHost, Port: port.TUN{TUN: a.host}, Name: HostInterface, MTU: a.mtu, Plain: a.plain()},
		{ID: OverlayPort, Kind: datapath.KindOverlay, Port: port.Engine{Engine: a.engine}, Name: "overlay", MTU: a.mtu},
	}, append(a.outsidePort(), a.fixed[len(a.fixed)-inProcess:]...)...)
	a.mu.Unlock()
	if err := a.openCalls(e); err != nil {
		return err
	}
	a.loop = loop.New(loop.Config[Output]{
		Compile: a.compile, Problems: func(out Output) []string { return out.Problems }, Publish: a.publish, Apply: a.apply, Log: a.log,
	})
	a.inheritSockets(e)
	if err := a.restore(e); err != nil {
		return err
	}
	a.free = nil // from here on, a device that is busy is somebody's
	if err := a.importAll(e); err != nil {
		a.log.Warn("not all that the agent before knew is taken over", "error", err)
	}
	first := a.compile()
	if err := a.publish(first); err != nil {
		return fmt.Errorf("publish the first tables: %w", err)
	}
	if err := a.engine.Apply(first.Peers); err != nil {
		a.log.Warn("overlay's peers not set, trying again", "error", err)
	}
	return nil
}

// inProcess is how many of the fixed ports are made by prepare.
const inProcess = 3

// openPool opens the record of addresses, whose lock is its own.
func (a *Agent) openPool() error {
	for began, wait := time.Now(), time.Millisecond; ; wait *= 2 {
		var err error
		a.pool, err = ipam.Open(ipam.Config{Dir: filepath.Join(a.cfg.StateDir, "ipam"), Logger: a.log})
		if !errors.Is(err, ipam.ErrLocked) || time.Since(began) > lockTime {
			return err
		}
		<-time.After(wait)
	}
}

// openHost takes netctl0 over, or makes it. It is persistent: without it, pod
// traffic of the node would follow the default route.
func (a *Agent) openHost(e estate.Estate) error {
	found, err := kernel.Describe(nil, HostInterface)
	if fd, ok := e.TakeOne(estate.HostTUN); ok && err == nil {
		a.host, err = kernel.AdoptTUN(fd, HostInterface, found.Index, 0)
		if err == nil {
			return nil
		}
		a.log.Warn("the host's interface is opened anew", "error", err)
		err = nil
	} else if ok {
		kernel.CloseFDs([]int{fd})
	}
	switch {
	case errors.Is(err, kernel.ErrNotFound):
		a.host, err = kernel.CreateTUN(kernel.TUNConfig{
			Name: HostInterface, MTU: a.mtu, TxQueueLen: txQueueLen, GSOMaxSize: gsoMaxSize(a.mtu),
			Offloads: a.offload.Works, Persist: true,
		})
		return err
	case err != nil:
		return err
	default:
		a.host, err = unlessBusy(a, func() (*kernel.TUN, error) { return kernel.AttachTUN(nil, HostInterface, found.Index) })
		return err
	}
}

// unlessBusy opens a device, if need be by taking it from the holders.
func unlessBusy(a *Agent, open func() (*kernel.TUN, error)) (*kernel.TUN, error) {
	t, err := open()
	if !errors.Is(err, kernel.ErrBusy) || a.free == nil {
		return t, err
	}
	a.free()
	for began, wait := time.Now(), time.Millisecond; ; wait *= 2 { // nor is it free at once
		t, err = open()
		if !errors.Is(err, kernel.ErrBusy) || time.Since(began) > lockTime {
			return t, err
		}
		<-time.After(wait)
	}
}

// openCalls makes the CNI server and its socket, where plugins wait from now on.
func (a *Agent) openCalls(e estate.Estate) error {
	fd, ok := e.TakeOne(estate.CNI)
	if !ok {
		fd = -1
	}
	var err error
	a.cni, err = cni.NewServer(cni.Config{Socket: filepath.Join(a.cfg.StateDir, "cni.sock"), Backend: a, Logger: a.log, Adopt: fd, Stays: a.isKept})
	if err != nil {
		kernel.CloseFDs([]int{fd})
		return err
	}
	if err := a.cni.Listen(); err != nil {
		return err
	}
	a.calls, err = a.cni.Socket()
	return err
}

// isKept reports whether what this agent leaves is kept for another one when it is
// told to end.
func (a *Agent) isKept() bool {
	return a.keeper.Keeps() && (!a.keeper.Child() || a.cfg.StandIn)
}

// openEngine opens the tunnel, on sockets that are there already if there are any.
func (a *Agent) openEngine(key overlay.PrivateKey, e estate.Estate) error {
	epoch, err := kernel.BootID()
	if err != nil {
		return err
	}
	peers := a.router.NewInputs(OverlayPort)
	cfg := overlay.WireGuardConfig{
		Key: key, ListenPort: a.cfg.ListenPort, MTU: a.mtu, Logger: a.log,
		Sink:        func(packets [][]byte) { peers.Deliver(packets...) },
		SessionFile: filepath.Join(a.cfg.StateDir, "sessions"), Epoch: epoch,
		UDP: overlay.UDPConfig{GSO: tunnelOffload(a.cfg.UDPGSO), GRO: tunnelOffload(a.cfg.UDPGRO)},
	}
	if fds := e.Take(estate.Tunnel); len(fds) > 0 {
		cfg.Sockets = &overlay.Sockets{FDs: fds}
	}
	if fd, ok := e.TakeOne(estate.Memory); ok {
		cfg.SessionMemory = os.NewFile(uintptr(fd), estate.Memory)
		defer cfg.SessionMemory.Close()
	}
	a.engine, err = overlay.NewWireGuard(cfg)
	if err != nil && cfg.Sockets != nil {
		a.log.Warn("tunnel's sockets are opened anew", "error", err)
		cfg.Sockets = nil
		a.engine, err = overlay.NewWireGuard(cfg)
	}
	return err
}

// tunnelOffload is the setting as the engine knows it.
func tunnelOffload(o settings.Offload) overlay.Offload {
	switch o {
	case settings.OffloadOn:
		return overlay.OffloadOn
	case settings.OffloadOff:
		return overlay.OffloadOff
	default:
		return overlay.OffloadAuto
	}
}

// borrowed returns what a process that comes after this one can go on with; the
// descriptors are valid until done is called.
func (a *Agent) borrowed() (all estate.Estate, done func()) {
	a.mu.Lock()
	all = make(estate.Estate, len(a.pods)+3)
	tuns := make([]*kernel.TUN, 0, len(a.pods))
	for id, p := range a.pods {
		all[estate.Pod(id)] = []int{p.tun.FD()}
		tuns = append(tuns, p.tun)
	}
	a.mu.Unlock()
	all[estate.HostTUN] = []int{a.host.FD()}
	if a.calls >= 0 {
		all[estate.CNI] = []int{a.calls}
	}
	all[estate.Tunnel] = a.engine.Sockets()
	if f := a.engine.SessionMemory(); f != nil {
		all[estate.Memory] = []int{int(f.Fd())}
	}
	maps.Copy(all, a.outsideSockets())
	listeners, err := a.sockets.Listeners()
	if err != nil {
		a.log.Warn("listening sockets are not kept", "error", err)
	}
	var copies []int
	for _, l := range listeners {
		all[estate.Listener(l.Addr, l.Proto)] = []int{l.FD}
		copies = append(copies, l.FD)
	}
	return all, func() {
		kernel.CloseFDs(copies)
		runtime.KeepAlive(tuns)
	}
}

// letGo closes what seize opened, so that another process, or this one again, can
// have it. What is in the kernel stays, and so do connections that end in sockets.
func (a *Agent) letGo() error {
	var errs []error
	if a.engine != nil {
		errs = append(errs, a.engine.Close())
		a.engine = nil
	}
	a.closeOutside()
	a.endings.Close()
	a.mu.Lock()
	for id, p := range a.pods {
		errs = append(errs, p.tun.Close())
		a.ports.release(p.port.ID)
		delete(a.pods, id)
	}
	a.mu.Unlock()
	if a.host != nil {
		errs = append(errs, a.host.Close())
		a.host = nil
	}
	if a.calls >= 0 {
		kernel.CloseFDs([]int{a.calls})
		a.calls = -1
	}
	return errors.Join(append(errs, a.closePool())...)
}

// closePool gives the record of addresses to whoever opens it next.
func (a *Agent) closePool() error {
	if a.pool == nil {
		return nil
	}
	err := a.pool.Close()
	a.pool = nil
	return err
}

// live runs what lives from prepare to close, whoever has the node: connections that
// end in sockets.
func (a *Agent) live(ctx context.Context) (wait func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	parts := map[string]func(context.Context) error{"network stack": a.stack.Run, "node sockets": a.sockets.Run, "name server": a.resolver.Run}
	left := make(chan struct{}, len(parts))
	for name, run := range parts {
		go func() {
			if err := ignoreDone(ctx, run(ctx)); err != nil {
				select {
				case a.lost <- fmt.Errorf("%s: %w", name, err):
				default: // something else failed before
				}
			}
			left <- struct{}{}
		}()
	}
	go func() {
		for range parts {
			<-left
		}
		close(ended)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// close lets go of what prepare made. The flow table goes last, when nobody walks.
func (a *Agent) close() error {
	var errs []error
	if a.sockets != nil {
		errs = append(errs, a.sockets.Close())
	}
	if a.stack != nil {
		errs = append(errs, a.stack.Close())
	}
	if a.flows != nil {
		errs = append(errs, a.flows.Close())
	}
	if a.affinity != nil {
		errs = append(errs, a.affinity.Close())
	}
	return errors.Join(errs...)
}

// gsoMaxSize bounds super-packets so that one of them becomes one UDP send of
// the tunnel: 65507 bytes hold so many encrypted segments.
func gsoMaxSize(mtu int) int {
	const udpPayload, wireGuard, padding, headers = 65507, 32, 16, 52
	sealed := (mtu+padding-1)/padding*padding + wireGuard
	return min(65536, udpPayload/sealed*(mtu-headers))
}
