package cluster

import (
	"errors"
	"io/fs"
	"time"

	"github.com/netctl/netctl/internal/cluster/statefile"
	"github.com/netctl/netctl/internal/model"
)

const (
	// saveInterval is how long a changed State waits for the file: more follows
	// soon. It bounds what a successor of a process that dies does not know.
	saveInterval = 100 * time.Millisecond
	// saveShare bounds the time that goes into the file: one part of so many. A
	// State that takes long to write waits longer.
	saveShare = 50
	// touchInterval is how often a process says that the file is as new as what it
	// serves, freshFor how long after that a successor believes it.
	touchInterval = 10 * time.Second
	freshFor      = 3 * touchInterval
)

// load takes the State of the last run from the file, for Run to begin with
// while no API server answers. When the last run ended a moment ago, Run begins
// with it at once: it is what this node did until then, and the API server's
// answer is only moments away.
func (k *Kubernetes) load() {
	if k.cfg.CacheFile == "" {
		return
	}
	age, err := statefile.Age(k.cfg.CacheFile)
	fresh := err == nil && age < freshFor
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
	c.State.Heard = time.Time{}               // that run's
	share(k.pool, c.State.Nodes)
	share(k.pool, c.State.Namespaces)
	share(k.pool, c.State.Pods)
	share(k.pool, c.State.Services)
	share(k.pool, c.State.EndpointSlices)
	k.learnServers(c.State)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cached, k.settings, k.fresh = c.State, c.Settings, fresh
	k.snapshot.seed(c.State)
}

// share interns what objects of a file have in common.
func share[T any](pool *interner, list []*T) {
	for _, o := range list {
		pool.object(o)
	}
}

// keepSaving writes the newest of the States that it is given to the file, not
// more often than saveInterval and saveShare allow and once more when the channel
// is closed. Until there is another, it says that the file is the newest.
func (k *Kubernetes) keepSaving(states <-chan *model.State) {
	current := time.NewTicker(touchInterval)
	defer current.Stop()
	var pause <-chan time.Time
	var newest, kept *model.State
	for {
		select {
		case s, ok := <-states:
			if !ok {
				if newest != kept {
					k.save(newest)
				}
				k.touch(newest)
				return
			}
			if newest = s; pause == nil {
				pause = time.After(saveInterval)
			}
			continue
		case <-current.C:
			k.touch(newest)
			continue
		case <-k.resave:
			kept = nil
			if pause == nil {
				pause = time.After(saveInterval)
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

// Keep says whether this process keeps the file: one that others have followed
// does not, for what it knows may be older than what they wrote.
func (k *Kubernetes) Keep(keep bool) {
	k.mu.Lock()
	k.keeps = keep
	if !keep {
		k.kept = statefile.Content{}
	}
	k.mu.Unlock()
	if keep {
		k.saveAgain()
	}
}

// saveAgain has the newest State written although it was already.
func (k *Kubernetes) saveAgain() {
	select {
	case k.resave <- struct{}{}:
	default:
	}
}

// touch says that the file is as new as what this process serves, if the State in
// it is the newest of the API server's that it was given. What the last run wrote
// is as old as it is, however long this one goes on with it.
func (k *Kubernetes) touch(newest *model.State) {
	k.mu.Lock()
	mine := newest != nil && k.kept.State == newest
	k.mu.Unlock()
	if !mine {
		return
	}
	if err := statefile.Touch(k.cfg.CacheFile); err != nil {
		k.log.Warn("state's file cannot be kept current", "error", err)
	}
}

// save writes a State, if there is one, to the file.
func (k *Kubernetes) save(s *model.State) {
	if s == nil || k.cfg.CacheFile == "" {
		return
	}
	k.mu.Lock()
	c := statefile.Content{Cluster: k.api.identity, State: s, Settings: k.settings}
	keeps := k.keeps
	k.mu.Unlock()
	if !keeps {
		return
	}
	if err := statefile.Write(k.cfg.CacheFile, &c); err != nil {
		k.log.Warn("state not kept for the next start", "error", err)
		return
	}
	k.mu.Lock()
	if k.keeps {
		k.kept = c
	}
	k.mu.Unlock()
}
