package apiserver_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/netctl/netctl/internal/cluster/apiserver"
)

// TestWitness: an error is an answer, and so is a certificate that nobody trusts;
// silence is none, and who gives up waiting learns nothing.
func TestWitness(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer s.Close()
	w := &apiserver.Witness{Next: s.Client().Transport}
	ask := func(ctx context.Context) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := w.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	trusting := w.Next
	for _, step := range []struct {
		what string
		next http.RoundTripper
		ends bool // before there is an answer
		want bool
	}{
		{"nothing was asked", nil, false, false},
		{"nobody", silent{}, false, false},
		{"an error of the server", trusting, false, true},
		{"nobody any more", silent{}, false, false},
		{"somebody else", &http.Transport{}, false, true},
		{"given up", silent{}, true, true},
	} {
		if step.next != nil {
			w.Next = step.next
			ctx := t.Context()
			if step.ends {
				ctx = ended
			}
			ask(ctx)
		}
		if w.Answered() != step.want {
			t.Errorf("%s: answered is %v", step.what, w.Answered())
		}
	}
}

type silent struct{}

func (silent) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("no route") }
