package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/overlay/handshake"
)

// Apply implements Engine.
func (w *WireGuard) Apply(peers []Peer) error {
	want, err := normalise(peers, w.self)
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage >= stageStopped {
		return ErrClosed
	}
	if w.first && slices.EqualFunc(w.applied, want, equalPeers) {
		return nil
	}
	added := w.match(want)
	routes, known := new(bart.Table[*peer]), make(map[Key]*peer, len(want))
	for i := range want {
		p := w.peers[want[i].PublicKey]
		known[p.key] = p
		for _, prefix := range want[i].AllowedIPs {
			routes.Insert(prefix, p)
		}
	}
	w.known.Store(&known)
	w.routes.Store(routes)
	removed := 0
	for key, p := range w.peers {
		if known[key] == nil {
			w.remember(key, p.remove())
			delete(w.peers, key)
			removed++
		}
	}
	w.applied, w.first = want, true
	if w.stage == stageStarted {
		w.adoptAll()
		for _, p := range added {
			p.begin()
		}
	}
	w.log.Info("overlay peers applied", "peers", len(want), "added", len(added), "removed", removed)
	return nil
}

// match makes the peers that are new, and moves those that have moved. It needs
// mu.
func (w *WireGuard) match(want []Peer) (added []*peer) {
	for i := range want {
		v := &want[i]
		p := w.peers[v.PublicKey]
		if p == nil {
			p = w.newPeer(*v)
			p.heard = w.past[p.key]
			delete(w.past, p.key)
			w.peers[p.key] = p
			added = append(added, p)
			continue
		}
		// What roamed comes back only when the State says something new.
		was, found := slices.BinarySearchFunc(w.applied, p.key, func(o Peer, key Key) int { return slices.Compare(o.PublicKey[:], key[:]) })
		if !found || w.applied[was].Endpoint != v.Endpoint {
			p.endpoint.Store(&v.Endpoint)
			p.mu.Lock()
			p.remeasure(w.clock.now())
			p.mu.Unlock()
		}
	}
	return added
}

// remember keeps what was heard of a peer that is removed, for when it comes
// back: a handshake that was recorded before must not be answered after. It
// needs mu.
func (w *WireGuard) remember(key Key, heard handshake.Timestamp) {
	if heard == (handshake.Timestamp{}) {
		return
	}
	if len(w.past) >= MaxPeers {
		for other := range w.past { // any
			delete(w.past, other)
			break
		}
	}
	w.past[key] = heard
}

// Peers implements Engine.
func (w *WireGuard) Peers() ([]PeerStatus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]PeerStatus, 0, len(w.applied))
	for _, v := range w.applied {
		p := w.peers[v.PublicKey]
		s := PeerStatus{Peer: v, RxBytes: p.rxBytes.Load(), TxBytes: p.txBytes.Load(), MTU: p.pathMTU()}
		s.Endpoint = *p.endpoint.Load()
		s.AllowedIPs = slices.Clone(v.AllowedIPs)
		p.mu.Lock()
		if p.shaken != 0 {
			s.LastHandshake = time.Unix(0, p.shaken)
		}
		p.mu.Unlock()
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), slices.Compare(a.PublicKey[:], b.PublicKey[:]))
	})
	return out, nil
}

// normalise returns the peers sorted, with canonical prefixes, or says why
// the set makes no sense. Compile never makes such a set.
func normalise(peers []Peer, self Key) ([]Peer, error) {
	if len(peers) > MaxPeers {
		return nil, fmt.Errorf("%d peers, at most %d are possible", len(peers), MaxPeers)
	}
	var errs []error
	keys := make(map[Key]string, len(peers))
	owner := make(map[netip.Prefix]string)
	out := make([]Peer, 0, len(peers))
	for _, p := range peers {
		if other, taken := keys[p.PublicKey]; taken {
			errs = append(errs, fmt.Errorf("peers %s and %s have one key", other, p.Node))
		}
		if p.PublicKey.IsZero() || p.PublicKey == self || !p.Endpoint.IsValid() {
			errs = append(errs, fmt.Errorf("peer %s has no key, our key or no endpoint", p.Node))
		}
		if a := p.Endpoint.Addr().Unmap(); a.Is6() && (a.IsLinkLocalUnicast() || a.Zone() != "") {
			errs = append(errs, fmt.Errorf("peer %s: endpoint %s is good on one link alone", p.Node, p.Endpoint))
		}
		keys[p.PublicKey] = p.Node
		prefixes := make([]netip.Prefix, 0, len(p.AllowedIPs))
		for _, prefix := range p.AllowedIPs {
			c, ok := canonical(prefix)
			if other, taken := owner[c]; !ok || taken {
				errs = append(errs, fmt.Errorf("peer %s: allowed IP %s is invalid or given twice (%s)", p.Node, prefix, other))
				continue
			}
			owner[c] = p.Node
			prefixes = append(prefixes, c)
		}
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		p.AllowedIPs = prefixes
		p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr().Unmap(), p.Endpoint.Port())
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Peer) int { return slices.Compare(a.PublicKey[:], b.PublicKey[:]) })
	return out, errors.Join(errs...)
}

// canonical masks a prefix and turns v4-mapped ones into IPv4.
func canonical(p netip.Prefix) (netip.Prefix, bool) {
	const mapped = 96 // bits of ::ffff:0:0/96
	if !p.IsValid() {
		return p, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < mapped {
			return p, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked(), true
}

func equalPeers(a, b Peer) bool {
	return a.Node == b.Node && a.PublicKey == b.PublicKey && a.Endpoint == b.Endpoint &&
		slices.Equal(a.AllowedIPs, b.AllowedIPs)
}
