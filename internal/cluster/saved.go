package cluster

import (
	"errors"
	"io/fs"
	"time"

	"github.com/netctl/netctl/internal/cluster/statefile"
	"github.com/netctl/netctl/internal/model"
)

const (
	// saveInterval is how long a changed State may wait for the file.
	saveInterval = 5 * time.Second
	// saveShare bounds the time that goes into the file: one part of so many.
	saveShare = 50
)

// load takes the State of the last run from the file, for Run to begin with
// while no API server answers.
func (k *Kubernetes) load() {
	if k.cfg.CacheFile == "" {
		return
	}
	c, err := statefile.Read(k.cfg.CacheFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			k.log.Warn("state of the last run ignored", "error", err)
		}
		return
	}
	if c.Cluster != k.api.identity {
		k.log.Warn("state of the last run ignored: it is of another cluster, whose certificate authority is not this one's", "file", k.cfg.CacheFile)
		return
	}
	kinds := make([]kind, 0, len(k.resources))
	for _, r := range k.resources {
		kinds = append(kinds, r.kind)
	}
	c.State = k.snapshot.only(c.State, kinds) // a run that read more may have written the file
	share(k.pool, c.State.Nodes)
	share(k.pool, c.State.Namespaces)
	share(k.pool, c.State.Pods)
	share(k.pool, c.State.Services)
	share(k.pool, c.State.EndpointSlices)
	k.learnServers(c.State)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cached, k.settings = c.State, c.Settings
	k.snapshot.seed(c.State)
}

// share interns what objects of a file have in common.
func share[T any](pool *interner, list []*T) {
	for _, o := range list {
		pool.object(o)
	}
}

// keepSaving writes the newest of the States that it is given to the file, not
// more often than saveInterval and once more when the channel is closed.
func (k *Kubernetes) keepSaving(states <-chan *model.State) {
	var pause <-chan time.Time
	var newest, kept *model.State
	for {
		select {
		case s, ok := <-states:
			if !ok {
				k.save(newest)
				return
			}
			if newest = s; pause == nil {
				pause = time.After(saveInterval) // not at once: more follows soon
			}
			continue
		case <-pause:
			pause = nil
		}
		if newest == kept {
			continue
		}
		start := time.Now()
		k.save(newest)
		kept = newest
		pause = time.After(max(saveInterval, time.Since(start)*saveShare))
	}
}

// save writes a State, if there is one, to the file.
func (k *Kubernetes) save(s *model.State) {
	if s == nil || k.cfg.CacheFile == "" {
		return
	}
	k.mu.Lock()
	c := statefile.Content{Cluster: k.api.identity, State: s, Settings: k.settings}
	k.mu.Unlock()
	if err := statefile.Write(k.cfg.CacheFile, &c); err != nil {
		k.log.Warn("state not kept for the next start", "error", err)
	}
}
