# Ruby threads on queues, a forked child on a pipe, timeouts of a timer thread. The command `check` (see desk.py)
# answers `JOBS WRONG`.
require 'timeout'

def result(job) = (job..job + 300).reduce(7) { |sum, n| (sum * 31 + n) % 1_000_003 }

jobs = Queue.new
results = Queue.new
4.times { Thread.new { while (job = jobs.pop) do results << [job, result(job)] end } }

lines, child_end = IO.pipe
fork do
  lines.close
  1.step { |n| child_end.puts "#{n} #{result(n)}" }
end
child_end.close

done = wrong = 0
lock = Mutex.new
count = ->(right) { lock.synchronize { done += 1; wrong += 1 unless right } }

Thread.new do
  1.step do |n|
    count.call(lines.gets == "#{n} #{result(n)}\n")
  end
end
Thread.new do
  loop do
    begin
      Timeout.timeout(0.02) { sleep }
    rescue Timeout::Error
      count.call(true)
    end
  end
end
Thread.new do
  last = ''
  loop do
    sleep 0.005
    command = File.read('/scratch/command') rescue next
    next if command == last
    last = command
    File.write('/scratch/answer.new', lock.synchronize { "#{command.to_i} #{done} #{wrong}\n" })
    File.rename('/scratch/answer.new', '/scratch/answer')
  end
end

0.step do |first|
  10.times { |n| jobs << first * 10 + n }
  10.times do
    job, got = results.pop
    count.call(got == result(job) && job / 10 == first)
  end
end
