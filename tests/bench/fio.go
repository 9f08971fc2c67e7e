package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// parseFio returns the I/Os per second of the only job in fio's JSON. Warnings
// may come before it.
func parseFio(out []byte) (float64, error) {
	begin := bytes.IndexByte(out, '{')
	if begin < 0 {
		return 0, fmt.Errorf("fio printed no JSON: %q", out)
	}
	type direction struct {
		IOPS     float64 `json:"iops"`
		Requests int64   `json:"total_ios"`
	}
	var result struct {
		Jobs []struct {
			Error       int
			Read, Write direction
		}
	}
	if err := json.Unmarshal(out[begin:], &result); err != nil {
		return 0, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(result.Jobs) != 1 {
		return 0, fmt.Errorf("fio ran %d jobs, want 1", len(result.Jobs))
	}
	job := result.Jobs[0]
	done := job.Write
	if done.Requests == 0 {
		done = job.Read
	}
	switch {
	case job.Error != 0:
		return 0, fmt.Errorf("fio's job ended with error %d", job.Error)
	case done.Requests == 0:
		return 0, errors.New("fio's job did nothing")
	}
	return done.IOPS, nil
}
