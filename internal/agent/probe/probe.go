// Package probe tells whoever watches over an agent's process whether it is alive
// and whether it is ready, over a unix socket that belongs to that process alone:
// two agents of one node, as during an upgrade, are asked apart. A port on the
// node would be taken by the first of them.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// timeout bounds a question; an agent that takes longer is not well.
const timeout = 3 * time.Second

// maxReason bounds what is read of an answer.
const maxReason = 4 << 10

// Question is what can be asked.
type Question string

// The questions.
const (
	Live  Question = "live"  // if not, the process is to be ended and started anew
	Ready Question = "ready" // if not, it is not to be relied on yet
)

// Subject answers the questions: nil is yes, an error says why not. Its functions
// are called from many goroutines and must not wait.
type Subject struct {
	Live, Ready func() error
}

// Serve answers on a socket at path until the context ends.
func Serve(ctx context.Context, path string, s Subject) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("serve probes: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the former probe socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("serve probes: %w", err)
	}
	mux := http.NewServeMux()
	for q, ask := range map[Question]func() error{Live: s.Live, Ready: s.Ready} {
		mux.HandleFunc("GET /"+string(q), func(w http.ResponseWriter, _ *http.Request) {
			if err := ask(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			}
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: timeout, WriteTimeout: timeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve probes: %w", err)
	}
	return nil
}

// Ask asks the process that serves the socket at path. An error is a no, or says
// that there was no answer.
func Ask(ctx context.Context, path string, q Question) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/"+string(q), http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no answer on %s: %w", path, err)
	}
	defer func() { _ = res.Body.Close() }()
	reason, err := io.ReadAll(io.LimitReader(res.Body, maxReason))
	if err != nil {
		return fmt.Errorf("no answer on %s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("not %s: %s", q, strings.TrimSpace(string(reason)))
	}
	return nil
}
