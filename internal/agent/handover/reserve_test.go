package handover

import (
	"errors"
	"strings"
	"testing"
)

// One in reserve has the seat back from a successor that is about to end, as any
// successor gets it; not from one that is not, and not when another one was faster.
func TestOfferedToTheReserve(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := take(t, dir)
	check(t, first.Serving())
	pass := func(from *Seat) {
		h := <-from.Heirs()
		if err := errors.Join(h.Leave(), h.Await(t.Context()), h.Conn().Close()); err != nil {
			t.Error(err)
		}
	}
	go pass(first)
	second, l, err := Take(t.Context(), dir)
	check(t, err, second.Serving(), l.Conn().Close())
	leave(t, first)

	if _, _, err := first.Accept(t.Context()); !errors.Is(err, ErrNotNeeded) {
		t.Errorf("what is not offered: %v", err)
	}
	retaken := make(chan error)
	go func() {
		_, err := first.Retake(t.Context())
		retaken <- err
	}()
	if there, err := second.Offer(); !there || err != nil { // it waits for one that has only just handed over
		t.Errorf("nobody is seen in reserve: %v", err)
	}
	if err := <-retaken; !errors.Is(err, ErrOffered) {
		t.Errorf("one in reserve hears %v", err)
	}
	second.mu.Lock()
	second.stay = lastStay // does not count any more
	second.mu.Unlock()
	go pass(second)
	third, l, err := first.Accept(t.Context())
	check(t, err, third.Serving(), l.Conn().Close())
	leave(t, second)
	if _, _, err := second.Accept(t.Context()); !errors.Is(err, ErrNotNeeded) {
		t.Errorf("what another one has taken: %v", err)
	}

	if there, err := third.Offer(); there || err != nil {
		t.Errorf("nobody is in reserve: %t, %v", there, err)
	}
	go pass(third)
	fourth, l, err := Take(t.Context(), dir, StandIn)
	check(t, err, fourth.Serving(), l.Conn().Close())
	leave(t, third)
	leave(t, fourth)
}

// A seat that was offered and is free is taken at once.
func TestOfferedAndLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := take(t, dir)
	check(t, first.Serving())
	if _, err := first.Offer(); err != nil {
		t.Error(err)
	}
	first.once.Do(func() { close(first.left) })
	check(t, first.deafen(), first.lock.Close()) // as when it dies
	again, err := first.Retake(t.Context())
	check(t, err)
	leave(t, again)
}

// A guest is shown what it wants by the one that serves, which serves on.
func TestGuestIsShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := take(t, dir)
	check(t, s.Serving())
	_, w := pipe(t)
	fd := fdOf(t, w)
	today := true
	go s.Guests(t.Context(), func(g *Heir) error {
		if !today {
			return errors.New("not today")
		}
		if today = false; !g.Wants("flows") || g.Wants("else") {
			t.Errorf("wants %q", g.Words())
		}
		return g.Give("flows", fd)
	}, func(error) {})
	items, err := Show(t.Context(), dir, "flows")
	check(t, err)
	if len(items) != 1 || len(items["flows"]) != 1 {
		t.Errorf("shown %v", items)
	}
	(&Legacy{Items: items}).Close()
	if _, err := Show(t.Context(), dir, "flows"); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("refused: %v", err)
	}
	if !taken(t, dir) {
		t.Error("the seat is free")
	}
}
