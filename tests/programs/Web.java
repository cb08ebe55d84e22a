// A server of the JDK with a pool of threads: it answers with what comes after the slash. SIGTERM ends it.

import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

public class Web {
	public static void main(String[] arguments) throws Exception {
		// As init would see it, not as one that a signal ended.
		Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(0)));
		HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 8082), 50);
		server.setExecutor(Executors.newFixedThreadPool(4));
		server.createContext("/", exchange -> {
			byte[] body = exchange.getRequestURI().getPath().substring(1).getBytes();
			exchange.sendResponseHeaders(200, body.length);
			exchange.getResponseBody().write(body);
			exchange.close();
		});
		server.start();
	}
}
