package agent

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/drain"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
)

// What passes from process to process besides descriptors that are simply kept:
// connections that end in sockets, and tables in words for another version.

// since begins a word with the time of a first copy: of the flows only those are
// wanted that have changed from then on.
const since = "since="

// wants are what this process cannot map of what the one before has.
func (a *Agent) wants() []string {
	out := append([]string{estate.Sessions}, a.foreign()...)
	if a.cfg.StandIn {
		out = append(out, handover.StandIn)
	}
	if a.copied > 0 {
		out = append(out, since+strconv.FormatUint(uint64(a.copied), 10))
	}
	return out
}

// foreign are the tables whose files are of another version.
func (a *Agent) foreign() (out []string) {
	if a.flows.Report().Refusal == flow.RefusedVersion {
		out = append(out, estate.Flows)
	}
	if a.affinity.Report().Refusal == mapfile.RefusedVersion {
		out = append(out, estate.Affinities)
	}
	return out
}

// copySkew is how many seconds before a first copy its changes are said to begin: the
// clock of packets is that of the workers, and in whole seconds.
const copySkew = 3

// copyTables has the tables that this process cannot map told in words while the one
// before serves, so that nobody waits for more of it later than for what has changed.
// One of a version that does not know of this tells everything later.
func (a *Agent) copyTables(ctx context.Context) {
	names := a.foreign()
	if len(names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, copyTime)
	defer cancel()
	began := a.router.Now()
	items, err := handover.Show(ctx, a.cfg.StateDir, names...)
	if err == nil {
		for name, fds := range items {
			if !slices.Contains(names, name) { // nobody has asked for it
				kernel.CloseFDs(fds)
				delete(items, name)
			}
		}
		err = a.importAll(items)
	}
	if err != nil {
		a.log.Info("what the agent before knows is copied when it hands over", "reason", err)
		return
	}
	if began > copySkew {
		a.copied = began - copySkew
	}
}

// copyTime bounds the wait for a first copy.
const copyTime = 10 * time.Second

// exportFlows writes the flows that an heir wants.
func (a *Agent) exportFlows(w io.Writer, heir *handover.Heir) error {
	for _, word := range heir.Words() {
		text, ok := strings.CutPrefix(word, since)
		at, err := strconv.ParseUint(text, 10, 32)
		if ok && err == nil {
			return a.flows.ExportSince(w, uint32(at))
		}
	}
	return a.flows.Export(w)
}

// exportAll gives an heir what it cannot map.
func (a *Agent) exportAll(heir *handover.Heir) error {
	return estate.Export(heir, map[string]func(io.Writer) error{
		estate.Flows:      func(w io.Writer) error { return a.exportFlows(w, heir) },
		estate.Affinities: a.affinity.Export,
		estate.Sessions: func(w io.Writer) error {
			_, err := w.Write(a.engine.ExportSessions())
			return err
		},
	})
}

// importAll takes what the agent before exported.
func (a *Agent) importAll(e estate.Estate) error {
	return e.Import(map[string]func([]byte) error{
		estate.Flows: func(b []byte) error {
			_, err := a.flows.Import(bytes.NewReader(b))
			return err
		},
		estate.Affinities: func(b []byte) error {
			_, err := a.affinity.Import(bytes.NewReader(b))
			return err
		},
		estate.Sessions: func(b []byte) error {
			if len(b) == 0 || a.engine.Report() == "" {
				return nil // the file is as good
			}
			return a.engine.ImportSessions(b)
		},
	})
}

// ends are where connections end in this process.
func (a *Agent) ends() drain.Ends {
	return drain.Ends{Stack: a.stack, Sockets: a.sockets, Logger: a.log}
}

// inheritSockets takes the node's listening sockets, and learns of the connections
// that stay with the agent before.
func (a *Agent) inheritSockets(e estate.Estate) {
	if fd, ok := e.TakeOne(estate.Drain); ok {
		conn, err := drain.Conn(fd)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), lockTime)
			defer cancel()
			a.heritage, err = drain.New(ctx, conn, a.ends())
		}
		if err != nil { // it is dead, or of a version that speaks otherwise
			a.log.Warn("connections of the agent before are lost", "error", err)
			a.heritage = nil
		}
	}
	var sockets []nodeport.Socket
	e.Listeners(func(at netip.AddrPort, proto model.Protocol, fd int) {
		sockets = append(sockets, nodeport.Socket{Addr: at, Proto: proto, FD: fd})
	})
	if len(sockets) > 0 {
		a.sockets.Adopt(sockets)
	}
}

// syncListeners has the holder keep the listening sockets that there are; applying
// is held.
func (a *Agent) syncListeners() {
	if a.listening == nil {
		return // not before it has been given everything
	}
	listeners, err := a.sockets.Listeners()
	if err != nil {
		a.log.Warn("listening sockets are not kept", "error", err)
		return
	}
	now := make(map[string]bool, len(listeners))
	for _, l := range listeners {
		name := estate.Listener(l.Addr, l.Proto)
		if now[name] = true; !a.listening[name] {
			a.keeper.Put(name, l.FD)
		}
		kernel.CloseFDs([]int{l.FD})
	}
	for name := range a.listening {
		if !now[name] {
			a.keeper.Drop(name) // or the port would stay taken
		}
	}
	a.listening = now
}

// keepAll gives the holder everything.
func (a *Agent) keepAll() {
	a.applying.Lock()
	defer a.applying.Unlock()
	a.keeper.Own(func() (estate.Estate, func()) {
		all, done := a.borrowed()
		a.listening = make(map[string]bool)
		for name := range all {
			if estate.IsListener(name) {
				a.listening[name] = true
			}
		}
		return all, done
	})
}

// knock has pods find out that what ended in the sockets of an agent that died is
// gone: some of them only wait.
func (a *Agent) knock() {
	var lost []packet.Tuple
	var inbound []bool
	a.flows.Each(func(k packet.Tuple, e flow.Entry) bool {
		out := datapath.PortID(e.Out)
		if k.Proto == packet.ProtoTCP && (out == NetstackPort || out == InboundPort) {
			lost = append(lost, packet.Tuple{Src: e.Rewrite.Src, Dst: e.Rewrite.Dst, SrcPort: e.Rewrite.SrcPort, DstPort: e.Rewrite.DstPort, Proto: k.Proto})
			inbound = append(inbound, out == InboundPort)
		}
		return true
	})
	for i, t := range lost {
		a.stack.Knock(t, inbound[i])
	}
}
