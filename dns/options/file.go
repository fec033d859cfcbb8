package options

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// checkEvery is how often a file is looked at, at most.
	checkEvery = time.Second
	// maxFile bounds what is read of one: 100 000 names fit.
	maxFile = 8 << 20
)

// none are the options of no file.
//
//nolint:gochecknoglobals // never written; one pointer, so that nothing seems to change
var none = new(Options)

// File is options in a file that may change. Its methods may be called from any
// goroutine. A nil File has no option.
type File struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	checked time.Time // guarded by mu
	stamp   stamp     // guarded by mu
	options *Options  // guarded by mu; never nil
	said    string    // the error that was logged last; guarded by mu
}

// stamp is how a change of a file shows.
type stamp struct {
	modified time.Time
	size     int64
}

// Open reads the file at path; "" is a file without any option. What is wrong with
// it at the start is an error, and what is wrong with it later is logged. With an
// error, too, there is a File, which has no option until the file is right.
func Open(path string, log *slog.Logger) (*File, error) {
	f := &File{path: path, log: log, now: time.Now, options: new(Options)}
	if path == "" {
		return f, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checked = f.now()
	return f, f.read()
}

// Options returns the options of the file as it is now, which is looked at once a
// second at most: the same pointer as long as they are the same. They must not be
// changed.
func (f *File) Options() *Options {
	if f == nil {
		return none
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if f.path == "" || now.Sub(f.checked) >= 0 && now.Sub(f.checked) < checkEvery {
		return f.options
	}
	f.checked = now
	old := f.options
	switch err := f.read(); {
	case err != nil && err.Error() != f.said:
		f.said = err.Error()
		f.log.Error("the name server's options are wrong, the former ones hold on", "error", err)
	case err == nil && f.options != old:
		f.said = ""
		f.log.Info("the name server's options changed", "file", f.path)
	}
	return f.options
}

// read reads the file if it changed; mu is held.
func (f *File) read() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return fmt.Errorf("read the name server's options: %w", err)
	}
	s := stamp{modified: info.ModTime(), size: info.Size()}
	if s == f.stamp {
		return nil
	}
	file, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("read the name server's options: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return fmt.Errorf("read the name server's options: %w", err)
	}
	f.stamp = s
	if len(data) > maxFile {
		return fmt.Errorf("options %s: larger than %d bytes", f.path, maxFile)
	}
	o, err := Decode(data)
	if err != nil {
		return fmt.Errorf("options %s: %w", f.path, err)
	}
	f.options = o
	return nil
}
