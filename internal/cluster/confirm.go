package cluster

import (
	"errors"
	"fmt"
)

// ErrNoAnswer is why the State is not confirmed while no API server can be reached:
// none is there, or nothing leads to it. One that answers with an error, or that
// cannot prove to be the cluster's, does answer.
var ErrNoAnswer = errors.New("no api server answers")

// Unconfirmed returns what keeps the State from being what the API server says now,
// rather than what it said to the last run; nil when nothing does.
func (k *Kubernetes) Unconfirmed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch what := k.missing(); {
	case what == "" && k.live:
		return nil
	case what == "":
		return errors.New("all kinds were read, and the state is being made of them")
	case !k.api.witness.Answered():
		return ErrNoAnswer
	default:
		for _, r := range k.resources {
			if !k.listed[r.kind] && k.troubles[r.kind] != nil {
				return fmt.Errorf("%s cannot be read: %w", r.plural, k.troubles[r.kind])
			}
		}
		return fmt.Errorf("%s are not read completely yet", what)
	}
}

// Live reports whether the State is the API server's and not one of the last run.
func (k *Kubernetes) Live() bool { return k.Unconfirmed() == nil }
