package shim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Grace is how long STATUS stays healthy after the agent's last healthy
// answer: longer than an agent takes to be replaced, shorter than what a
// scheduler should be kept in the dark for.
const Grace = 60 * time.Second

// healthSuffix names the file beside the socket that holds the last healthy
// answer: "<boot id> <seconds since boot>\n". Time since boot runs through
// suspend and knows no clock changes; the boot ID tells another boot's file.
const healthSuffix = ".healthy"

// maxHealthFile bounds what is read back.
const maxHealthFile = 128

func noteHealthy(socket string) error {
	boot, up, err := uptime()
	if err != nil {
		return err
	}
	// One write of a fixed length over the old record: no reader sees half of
	// it, and a killed plugin leaves no temporary file. No fsync: after a crash
	// of the machine the record means nothing.
	f, err := os.OpenFile(socket+healthSuffix, os.O_CREATE|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %015.2f\n", boot, up.Seconds())
	return errors.Join(err, f.Close())
}

// healthyLately reports whether the agent gave a healthy answer within Grace.
// Anything odd about the file means no.
func healthyLately(socket string) bool {
	boot, up, err := uptime()
	if err != nil {
		return false
	}
	f, err := os.Open(socket + healthSuffix)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxHealthFile)
	n, err := f.Read(b)
	if err != nil {
		return false
	}
	return within(string(b[:n]), boot, up)
}

func within(record, boot string, up time.Duration) bool {
	noted, seconds, ok := strings.Cut(strings.TrimSuffix(record, "\n"), " ")
	if !ok || noted != boot {
		return false
	}
	then, err := parseSeconds(seconds)
	return err == nil && then <= up && up-then < Grace
}

// uptime returns the boot's ID and the time since boot.
func uptime() (string, time.Duration, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, fmt.Errorf("read boot id: %w", err)
	}
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return "", 0, fmt.Errorf("read uptime: %w", err)
	}
	first, _, _ := bytes.Cut(b, []byte{' '})
	up, err := parseSeconds(string(first))
	if err != nil {
		return "", 0, fmt.Errorf("read uptime: %w", err)
	}
	return string(bytes.TrimSpace(boot)), up, nil
}

func parseSeconds(s string) (time.Duration, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1e9) { // the comparison also refuses NaN
		return 0, fmt.Errorf("seconds %q", s)
	}
	return time.Duration(f * float64(time.Second)), nil
}
