package overlay

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// warnEvery bounds how often one kind of WireGuard error is logged: some come
// once per packet batch while a network is down.
const warnEvery = 10 * time.Second

// deviceLog turns WireGuard's two-function logger into slog: what it calls
// verbose is debug, its errors are warnings, because it retries them all. Its
// workers say goodbye after the device is closed; nobody hears that.
type deviceLog struct {
	log *slog.Logger

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	last    map[string]time.Time // by format, of which there are a few dozen; guarded by mu
	skipped int                  // guarded by mu
}

func newDeviceLog(log *slog.Logger) *deviceLog {
	return &deviceLog{log: log, last: make(map[string]time.Time)}
}

func (l *deviceLog) logger() *device.Logger {
	return &device.Logger{Verbosef: l.verbosef, Errorf: l.errorf}
}

func (l *deviceLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

func (l *deviceLog) verbosef(format string, args ...any) {
	if !l.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.log.Debug("wireguard", "detail", fmt.Sprintf(format, args...))
	}
}

func (l *deviceLog) errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.last[format]; l.closed || ok && now.Sub(last) < warnEvery {
		l.skipped++
		return
	}
	l.last[format] = now
	l.log.Warn("wireguard", "detail", fmt.Sprintf(format, args...), "skipped", l.skipped)
	l.skipped = 0
}
