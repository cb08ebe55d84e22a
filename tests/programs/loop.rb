# An event loop of Ruby: numbered jobs go down pipes to children that were forked, and come back; threads that wait for each
# other in queues, and a timer. The command `check` answers `DONE WRONG`.

WORKERS = 3

def result(job)
  [job, (0..job % 200).sum { |i| i * i }, job.to_s.rjust(8, "0") * 20]
end

pipes = WORKERS.times.map do
  job_end, jobs = IO.pipe
  results, result_end = IO.pipe
  fork do
    jobs.close
    results.close
    while (job = Marshal.load(job_end))
      Marshal.dump(result(job), result_end)
      result_end.flush
    end
  rescue EOFError
    exit
  end
  job_end.close
  result_end.close
  [jobs, results]
end

lock = Mutex.new
done = wrong = ticks = 0
count = lambda do |right|
  lock.synchronize do
    done += 1
    wrong += 1 unless right
  end
end

# Threads hand each other numbers.
queues = Array.new(4) { Thread::SizedQueue.new(2) }
queues.each_cons(2) { |from, to| Thread.new { loop { to << from.pop + 1 } } }
Thread.new { (0..).each { |number| queues.first << number } }
Thread.new { (3..).each { |number| count.(queues.last.pop == number); sleep 0.001 } }
# A timer.
Thread.new { loop { sleep 0.01; lock.synchronize { ticks += 1 } } }

# Each pipe has jobs on their way.
Thread.new do
  (0..).each do |round|
    pipes.each_with_index { |(jobs, _), n| Marshal.dump(round * WORKERS + n, jobs); jobs.flush }
    left = pipes.each_with_index.to_a
    until left.empty?
      ready, = IO.select(left.map { |(pipe, _)| pipe[1] })
      left.reject! do |pipe, n|
        next false unless ready.include?(pipe[1])

        count.(Marshal.load(pipe[1]) == result(round * WORKERS + n))
        true
      end
    end
  end
end

# As programs/desk.py does.
seen = nil
ticks_before = 0
loop do
  words = File.exist?("/scratch/command") ? File.read("/scratch/command").split : []
  if words.empty? || words[0] == seen
    sleep 0.005
    next
  end
  seen = words[0]
  # A timer that stands still is wrong, too.
  stands = lock.synchronize { ticks } == ticks_before && (sleep 0.5; lock.synchronize { ticks } == ticks_before)
  ticks_before = lock.synchronize { ticks }
  numbers = lock.synchronize { [done, wrong + (stands ? 1 : 0)] }
  File.write("/scratch/answer.new", "#{seen} #{numbers.join(" ")}\n")
  File.rename("/scratch/answer.new", "/scratch/answer")
end
