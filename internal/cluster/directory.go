package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/netctl/netctl/internal/model"
)

// Times of the directory source.
const (
	// defaultDebounce joins the events of one change (an editor's or kubectl's
	// several writes) into one State and is short enough not to be noticed.
	defaultDebounce = 3 * time.Millisecond
	// debounceLimit bounds the wait under a steady stream of events, in debounces.
	debounceLimit = 8
	// defaultRescan is the safety net under lost events. A rescan only looks at
	// time stamps.
	defaultRescan = 10 * time.Second
	// pollRescan is used when the kernel has no watches left.
	pollRescan = 200 * time.Millisecond
)

// DirectoryConfig says which directory to read.
type DirectoryConfig struct {
	Path     string        // must exist
	Logger   *slog.Logger  // nil: silent
	Debounce time.Duration // 0: a few milliseconds
	Rescan   time.Duration // 0: ten seconds
}

// Directory is the Source that reads Kubernetes manifests (*.yaml, *.yml,
// *.json; several documents, lists) from a directory and everything below it,
// except names that begin with a dot. It is also where an agent publishes its
// node's claim and claims blocks. The methods may be called concurrently.
//
// Replace files atomically (rename), as WriteObject does: a file that is
// written in place may be read half.
type Directory struct {
	cfg DirectoryConfig

	mu       sync.Mutex
	problems []Problem // guarded by mu
}

// NewDirectory returns a Directory; nothing is read before Run.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	if cfg.Path == "" {
		return nil, errors.New("manifest directory: no path")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Debounce <= 0 {
		cfg.Debounce = defaultDebounce
	}
	if cfg.Rescan <= 0 {
		cfg.Rescan = defaultRescan
	}
	return &Directory{cfg: cfg}, nil
}

// Read reads a directory once, without watching it.
func Read(path string) (*model.State, []Problem, error) {
	t := newTree(path, func(string) {})
	if err := t.scan(); err != nil {
		return nil, nil, fmt.Errorf("read manifests: %w", err)
	}
	return t.index.build(), t.problems(), nil
}

// Problems returns what was wrong in the manifests when they were last read.
func (d *Directory) Problems() []Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.problems)
}

// Run implements Source. It fails only when the directory cannot be read at the
// start; later trouble keeps the last State until the directory is back.
func (d *Directory) Run(ctx context.Context, publish func(*model.State)) error {
	watcher, events, errs := d.watcher()
	if watcher != nil {
		defer watcher.Close()
	}
	rescan := d.cfg.Rescan
	unwatched := watcher == nil
	t := newTree(d.cfg.Path, func(dir string) {
		if watcher != nil && watcher.Add(dir) != nil {
			unwatched = true
		}
	})
	if err := t.scan(); err != nil {
		return fmt.Errorf("read manifests: %w", err)
	}
	if unwatched {
		d.cfg.Logger.Warn("directory not watched, polling", "path", d.cfg.Path, "interval", pollRescan)
		rescan = min(rescan, pollRescan)
	}
	r := &report{log: d.cfg.Logger, seen: map[Problem]bool{}, noted: map[string]bool{}}
	d.publish(t, r, publish)
	ticker := time.NewTicker(rescan)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			dirty := map[string]bool{}
			mark(dirty, e)
			if full := d.gather(ctx, events, errs, dirty); full {
				r.scanned(t.scan())
			}
			for _, path := range slices.Sorted(maps.Keys(dirty)) {
				t.refresh(path)
			}
		case <-errs: //nolint:errcheck // an overflow: events were lost
			r.scanned(t.scan())
		case <-ticker.C:
			r.scanned(t.scan())
		}
		d.publish(t, r, publish)
	}
}

// watcher returns a watcher, or nil channels when the kernel gives none.
func (d *Directory) watcher() (*fsnotify.Watcher, <-chan fsnotify.Event, <-chan error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		d.cfg.Logger.Warn("file watch unavailable", "error", err)
		return nil, nil, nil
	}
	return w, w.Events, w.Errors
}

// gather collects the events that follow closely upon each other. It reports
// whether events were lost.
func (d *Directory) gather(ctx context.Context, events <-chan fsnotify.Event, errs <-chan error, dirty map[string]bool) bool {
	limit := time.NewTimer(debounceLimit * d.cfg.Debounce)
	defer limit.Stop()
	quiet := time.NewTimer(d.cfg.Debounce)
	defer quiet.Stop()
	lost := false
	for {
		select {
		case e := <-events:
			mark(dirty, e)
			quiet.Reset(d.cfg.Debounce)
		case <-errs: //nolint:errcheck // an overflow, as above
			lost = true
		case <-quiet.C:
			return lost
		case <-limit.C:
			return lost
		case <-ctx.Done():
			return lost
		}
	}
}

// mark notes the path of an event that may have changed what is read.
func mark(dirty map[string]bool, e fsnotify.Event) {
	if e.Name != "" && e.Op != fsnotify.Chmod {
		dirty[e.Name] = true
	}
}

// publish passes the tree's State on if it changed, and says what is wrong.
func (d *Directory) publish(t *tree, r *report, publish func(*model.State)) {
	problems := t.problems()
	d.mu.Lock()
	d.problems = problems
	d.mu.Unlock()
	r.changed(problems, t.ignored)
	if s := t.index.build(); s != nil {
		publish(s)
	}
}

// report logs each problem once, when it appears.
type report struct {
	log   *slog.Logger
	seen  map[Problem]bool
	noted map[string]bool
	gone  bool // the directory could not be scanned
}

// scanned logs when the directory as a whole goes away and comes back.
func (r *report) scanned(err error) {
	if gone := err != nil; gone != r.gone {
		r.gone = gone
		if gone {
			r.log.Warn("manifest directory unreadable, keeping last state", "error", err)
		} else {
			r.log.Info("manifest directory readable again")
		}
	}
}

// changed logs what is new.
func (r *report) changed(problems []Problem, ignored map[string]string) {
	now := make(map[Problem]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !r.seen[p] {
			r.log.Warn("manifest refused", "file", p.File, "line", p.Line, "error", strings.TrimSpace(p.Text))
		}
	}
	r.seen = now
	for _, kind := range slices.Sorted(maps.Keys(ignored)) {
		if !r.noted[kind] {
			r.noted[kind] = true
			r.log.Info("kind ignored", "kind", kind, "file", ignored[kind])
		}
	}
}
