package notice

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/model"
)

type recorder struct {
	err error

	mu  sync.Mutex
	got []string // guarded by mu
}

func (r *recorder) Record(_ context.Context, n model.Notice) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, n.Text)
	return r.err
}

func (r *recorder) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func notices(texts ...string) []model.Notice {
	var out []model.Notice
	for _, s := range texts {
		out = append(out, model.Notice{Kind: "Service", Name: model.Name{Namespace: "a", Name: "b"}, Reason: "R", Text: s})
	}
	return out
}

func TestEverythingIsSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{err: errors.New("no API server")} // nobody tries again
		k := New(r, slog.New(slog.DiscardHandler))
		go k.Run(t.Context())
		for _, step := range []struct {
			say  []string
			want int
		}{
			{[]string{"x", "y", "x"}, 2},
			{[]string{"x", "y"}, 2},
			{[]string{"y"}, 2},
			{[]string{"x", "y"}, 3}, // it has come back
			{nil, 3},
		} {
			k.Say(notices(step.say...))
			synctest.Wait()
			if got := r.heard(); len(got) != step.want {
				t.Errorf("after %v: %v", step.say, got)
			}
		}
	})
}

// However much is the matter, Events come slowly, and in the end all of them.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		k := New(r, slog.New(slog.DiscardHandler))
		go k.Run(t.Context())
		var many []string
		for i := range 100 {
			many = append(many, strconv.Itoa(i))
		}
		for range 3 {
			k.Say(notices(many...))
			synctest.Wait()
		}
		if got := r.heard(); len(got) != burst || k.Skipped() == 0 {
			t.Errorf("%d events at once, %d skipped", len(got), k.Skipped())
		}
		for range 100 {
			time.Sleep(interval)
			k.Say(notices(many...))
			synctest.Wait()
		}
		seen := map[string]bool{}
		for _, s := range r.heard() {
			if seen[s] {
				t.Errorf("%s was said twice", s)
			}
			seen[s] = true
		}
		if len(seen) != 100 {
			t.Errorf("%d of 100 were said", len(seen))
		}
	})
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	k := New(nil, slog.New(slog.DiscardHandler))
	k.Say(notices("x"))
	if len(k.due) > 0 {
		t.Error("it waits for nobody")
	}
}
