package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/netctl/netctl/overlay/sessions"
)

// resumed is a session that another process had.
type resumed struct {
	sessions.Session

	pair *keypair
}

// order is greater for what is used first.
func (r *resumed) order() int64 {
	if r.Confirmed != 0 {
		return r.Confirmed
	}
	return r.Created
}

// resume takes over what is in the store, and what was imported. It needs mu.
func (w *WireGuard) resume() {
	for slot, v := range w.store.Load {
		w.take(slot, v)
	}
	for i := range w.staged {
		v := &w.staged[i]
		slot := int(v.Local) & (w.store.Slots() - 1) // where its index leads
		if v.Created > w.clock.now()+int64(rekeyTimeout) {
			continue
		}
		if err := w.store.Claim(slot); err != nil {
			w.log.Warn("overlay session not imported", "err", err)
			continue
		}
		w.store.Put(slot, v)
		w.take(slot, v)
	}
	clear(w.staged)
	w.staged = nil
	if n := len(w.orphans); n > 0 {
		w.log.Info("overlay sessions taken over", "peers", n)
	}
	if w.first {
		w.adoptAll()
		return
	}
	w.funeral = time.AfterFunc(rejectAfterTime, w.bury)
}

// bury wipes the sessions whose peers have not come in time: they are all over.
func (w *WireGuard) bury() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage == stageStarted {
		w.adoptAll()
	}
}

// take keeps the session of a slot for its peer, or wipes it. It needs mu.
func (w *WireGuard) take(slot int, v *sessions.Session) {
	now := w.clock.now()
	kp, err := w.openKeypair(slot, v)
	// Clocks of two processes may differ by a moment; a session from the future
	// would never end.
	if err != nil || !kp.good(now) || v.Created > now+int64(rekeyTimeout) || int(v.Local)&(w.store.Slots()-1) != slot {
		w.store.Free(slot)
		return
	}
	key := Key(v.Peer)
	w.orphans[key] = append(w.orphans[key], resumed{*v, kp})
}

// adoptAll gives peers their sessions, and wipes those of nobody. It needs mu.
func (w *WireGuard) adoptAll() {
	for key, pairs := range w.orphans {
		if p := w.peers[key]; p != nil {
			p.adopt(pairs)
			continue
		}
		for _, r := range pairs {
			w.retire(r.pair)
		}
	}
	clear(w.orphans)
}

// exported is the portable form of the sessions. A reader skips fields that it
// does not know.
type exported struct {
	Version  int               `json:"version"`
	Epoch    string            `json:"epoch"`
	Owner    string            `json:"owner"`
	Sessions []exportedSession `json:"sessions"`
}

type exportedSession struct {
	Peer      []byte `json:"peer"`
	Local     uint32 `json:"local"`
	Remote    uint32 `json:"remote"`
	Initiator bool   `json:"initiator"`
	Created   int64  `json:"created"` // nanoseconds since boot
	Confirmed int64  `json:"confirmed,omitempty"`
	Handshake int64  `json:"handshake,omitempty"` // Unix nanoseconds
	Send      []byte `json:"send"`
	Receive   []byte `json:"receive"`
	Sent      uint64 `json:"sent"`
	Received  uint64 `json:"received"`
	Heard     []byte `json:"heard,omitempty"` // the greatest TAI64N timestamp of the peer
}

const (
	exportVersion = 1
	// maxExport bounds what ImportSessions reads.
	maxExport = 32 << 20
)

// ExportSessions returns the sessions for one process with another layout of the
// session file. It is nil before Start, before Stop, and the second time: two
// processes that import the same bytes would seal with the same numbers. Who
// uses the file instead is safe, even beside the one that imports: the numbers
// that are exported are taken out of it.
func (w *WireGuard) ExportSessions() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage != stageStopped || !w.served || w.exported {
		return nil
	}
	w.exported = true
	out := exported{Version: exportVersion, Epoch: w.cfg.Epoch, Owner: w.self.String()}
	for v := range w.store.Export {
		out.Sessions = append(out.Sessions, exportedSession{
			Peer: v.Peer[:], Local: v.Local, Remote: v.Remote, Initiator: v.Initiator, Created: v.Created, Confirmed: v.Confirmed,
			Handshake: v.Handshake, Send: v.Send[:], Receive: v.Receive[:], Sent: v.Sent, Received: v.Received, Heard: v.Heard[:],
		})
	}
	b, err := json.Marshal(out)
	if err != nil {
		w.log.Warn("overlay sessions not exported", "err", err)
		return nil
	}
	return b
}

// ImportSessions takes what ExportSessions gave, before Start, which uses it. An
// error means that nothing was taken. The same bytes must be imported once, by
// one process: nothing here can see whether another one does.
func (w *WireGuard) ImportSessions(b []byte) error {
	if len(b) > maxExport {
		return fmt.Errorf("overlay: import sessions: %d bytes, at most %d", len(b), maxExport)
	}
	var in exported
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("overlay: import sessions: %w", err)
	}
	switch {
	case in.Version != exportVersion:
		return fmt.Errorf("overlay: import sessions: version %d, want %d", in.Version, exportVersion)
	case in.Epoch != w.cfg.Epoch:
		return fmt.Errorf("overlay: import sessions: from another boot (%q)", in.Epoch)
	case in.Owner != w.self.String():
		return fmt.Errorf("overlay: import sessions: of another key, %q", in.Owner)
	case len(in.Sessions) > w.store.Slots():
		return fmt.Errorf("overlay: import sessions: %d, at most %d", len(in.Sessions), w.store.Slots())
	}
	staged := make([]sessions.Session, 0, len(in.Sessions))
	for i := range in.Sessions {
		v, err := in.Sessions[i].session()
		if err != nil {
			return fmt.Errorf("overlay: import session %d: %w", i, err)
		}
		staged = append(staged, v)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage != stageOpen {
		return fmt.Errorf("overlay: import sessions: after start: %w", ErrClosed)
	}
	w.staged = staged
	return nil
}

func (e *exportedSession) session() (sessions.Session, error) {
	if len(e.Peer) != sessions.KeySize || len(e.Send) != sessions.KeySize || len(e.Receive) != sessions.KeySize {
		return sessions.Session{}, errors.New("a key has not 32 bytes")
	}
	if e.Created < 0 || e.Sent > sessions.MaxSent {
		return sessions.Session{}, fmt.Errorf("made at %d, %d messages sent: impossible", e.Created, e.Sent)
	}
	v := sessions.Session{
		Peer: [sessions.KeySize]byte(e.Peer), Local: e.Local, Remote: e.Remote, Initiator: e.Initiator, Created: e.Created,
		Confirmed: e.Confirmed, Handshake: e.Handshake, Send: [sessions.KeySize]byte(e.Send), Receive: [sessions.KeySize]byte(e.Receive),
		Sent: e.Sent, Received: e.Received,
	}
	copy(v.Heard[:], e.Heard)
	return v, nil
}
